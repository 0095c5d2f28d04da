"""How the page looks, and the little that runs in the browser."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
TEXT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
CODE = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

HEAD = (
    f"<style>{(HERE / 'theme.css').read_text()}</style>"
    f"<script>{(HERE / 'demo.js').read_text()}</script>"
)


def theme() -> gr.themes.Base:
    """Gradio's controls in this page's colours, with the fonts of the visitor's system."""
    both = {
        "body_background_fill": ("#f6f6f3", "#0f1114"),
        "body_text_color": ("#191b1f", "#e8eaed"),
        "body_text_color_subdued": ("#5c636e", "#9aa3af"),
        "background_fill_primary": ("#ffffff", "#171a1f"),
        "background_fill_secondary": ("#f6f6f3", "#0f1114"),
        "block_background_fill": ("#ffffff", "#171a1f"),
        "border_color_primary": ("#dddeda", "#2c323b"),
        "border_color_accent": ("#1c5fa8", "#74b6f5"),
        "color_accent_soft": ("#e6eef7", "#1d2c3c"),
        "link_text_color": ("#1c5fa8", "#74b6f5"),
        "block_label_text_color": ("#5c636e", "#9aa3af"),
        "block_title_text_color": ("#5c636e", "#9aa3af"),
        "input_background_fill": ("#ffffff", "#0f1114"),
        "input_border_color": ("#c9cbc6", "#39404b"),
        "input_border_color_focus": ("#1c5fa8", "#74b6f5"),
        "button_primary_background_fill": ("#1c5fa8", "#74b6f5"),
        "button_primary_background_fill_hover": ("#174f8c", "#8fc5f8"),
        "button_primary_text_color": ("#ffffff", "#0b1622"),
        "button_secondary_background_fill": ("#ffffff", "#171a1f"),
        "button_secondary_background_fill_hover": ("#eeeeea", "#20252c"),
        "button_secondary_border_color": ("#c9cbc6", "#39404b"),
        "button_secondary_text_color": ("#191b1f", "#e8eaed"),
        "checkbox_label_background_fill": ("#ffffff", "#0f1114"),
        "checkbox_label_background_fill_hover": ("#eeeeea", "#20252c"),
        "checkbox_label_background_fill_selected": ("#e6eef7", "#1d2c3c"),
        "checkbox_label_text_color_selected": ("#123f70", "#cfe6fc"),
        "checkbox_background_color_selected": ("#1c5fa8", "#4f97dc"),
        "checkbox_border_color_selected": ("#1c5fa8", "#4f97dc"),
        "slider_color": ("#1c5fa8", "#74b6f5"),
    }
    values = {name: light for name, (light, _) in both.items()}
    values |= {f"{name}_dark": dark for name, (_, dark) in both.items()}
    return gr.themes.Base(
        font=TEXT, font_mono=CODE, radius_size="sm", spacing_size="sm", text_size="sm"
    ).set(
        block_border_width="0px",
        input_border_width="1px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_title_text_size="12.5px",
        block_title_text_weight="500",
        shadow_drop="none",
        button_large_radius="8px",
        button_large_padding="10px 16px",
        **values,
    )
