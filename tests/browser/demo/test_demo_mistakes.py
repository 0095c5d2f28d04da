"""What goes wrong gets a sentence, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest

from mmf_deploy.noise import MAX_SEED
from tests.browser.demo.pages import (
    PATIENCE_S,
    after,
    process,
    seed,
    shown,
    typed,
    visit,
)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("text", ["seven", "-3", "1e9", str(MAX_SEED + 1)])
def test_a_wrong_seed_gets_a_sentence_in_sight_and_everything_stays(
    new_page, digits, screenshot, text, width
):
    page = visit(new_page(width, 844), digits, "?seed=7")
    before = shown(page)
    typed(page, text)()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert f"Seed '{text}': expected a whole number from 0 to {MAX_SEED}." in alert.inner_text()
    assert page.evaluate("""() => {
        const r = document.querySelector('[role=alert]').getBoundingClientRect();
        return r.top >= 0 && r.bottom <= innerHeight;
    }""")
    screenshot(page, f"demo-wrong-seed-{width}", full_page=False)
    assert seed(page).input_value() == text
    np.testing.assert_array_equal(shown(page), before)
    after(page, typed(page, "8"))
    assert page.get_by_role("alert").count() == 0


def test_seeds_that_count_too_far_get_the_service_s_sentence(page, digits):
    visit(page, digits)
    typed(page, str(MAX_SEED))()
    page.get_by_role("alert").wait_for()
    said = page.get_by_role("alert").inner_text()
    assert said == f"Seed: the last of 16 seeds from {MAX_SEED} on exceeds {MAX_SEED}."


def test_a_service_that_goes_away_gets_a_sentence_and_its_return_an_image(
    new_page, tmp_path, digits
):
    with process("serve") as (service, address), process("demo", "--url", address) as (demo, url):
        page = visit(new_page(), url, "?seed=7")
        other = visit(new_page(), digits, "?seed=7")
        np.testing.assert_array_equal(shown(page), shown(other))
        assert address in page.locator("header").inner_text()
        service.kill()
        service.wait()
        typed(page, "8")()
        page.get_by_role("alert").wait_for()
        said = page.get_by_role("alert").inner_text()
        assert said.startswith(address)
        assert "is mmf-serve running there?" in said
        np.testing.assert_array_equal(shown(page), shown(other))
        port = address.rpartition(":")[2]
        again = [sys.executable, "-m", "mmf_deploy.cli", "serve", "--port", port]
        with subprocess.Popen(again, stdout=subprocess.PIPE, text=True) as back:
            assert back.stdout.readline()
            np.testing.assert_array_equal(
                after(page, typed(page, "8")), after(other, typed(other, "8"))
            )
            back.terminate()
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=PATIENCE_S)
        assert (demo.returncode, out, err) == (0, "", "")


def test_a_password_is_asked_for_and_the_link_survives_it(new_page, tmp_path):
    file = tmp_path / "guests"
    file.write_text("me:pass:word\n")
    with process("demo", "--auth-file", file) as (_, address):
        page = new_page()
        page.goto(f"{address}/?seed=77&count=1")
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("pass:word")
        page.get_by_role("button", name="Login").click()
        page.get_by_alt_text("7, seed 77").wait_for()
        page.close()  # before the server: it would complain
