"""The tables and figures of the paper, one file each, as `mmf reproduce NAME`.

An experiment says which runs it needs and what is to be measured of them (``plan``), and makes
its tables and pictures of the numbers (``report``). Runs that several share are trained once.
"""

EXPERIMENTS = {
    "table2": "mmf_deploy.training.experiments.table2",
    "table3": "mmf_deploy.training.experiments.table3",
    "baselines": "mmf_deploy.training.experiments.baselines",
    "fig1": "mmf_deploy.training.experiments.fig1",
    "fig2": "mmf_deploy.training.experiments.fig2",
    "fig3a": "mmf_deploy.training.experiments.fig3a",
    "fig3b": "mmf_deploy.training.experiments.fig3b",
    "fig4": "mmf_deploy.training.experiments.fig4",
    "fig5": "mmf_deploy.training.experiments.fig5",
    "fig6": "mmf_deploy.training.experiments.fig6",
    "curriculum": "mmf_deploy.training.experiments.curriculum",
    "tangents": "mmf_deploy.training.experiments.tangents",
    "guidance": "mmf_deploy.training.experiments.guidance_sweep",
    "fewstep": "mmf_deploy.training.experiments.fewstep",
}
