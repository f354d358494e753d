"""Packaging: all metadata lives in `settings.ini`, this file only hands it to setuptools."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="], interpolation=None)
config.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
meta = config["DEFAULT"]


def lines(key: str) -> list[str]:
    return meta[key].split("\n")[1:]


setup(
    name=meta["lib_name"],
    version=meta["version"],
    description=meta["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=meta["keywords"],
    author=meta["author"],
    license=meta["license"],
    python_requires=">=" + meta["min_python"],
    packages=[*find_packages(include=["tcell_drugseq*"]), "tcell_drugseq.analysis"],
    package_dir={"tcell_drugseq.analysis": "nbs/analysis"},  # the notebooks that reports and batches run
    include_package_data=True,
    package_data={"tcell_drugseq": ["assets/**/*", "py.typed"], "tcell_drugseq.analysis": ["*.ipynb"]},
    install_requires=lines("requirements"),
    extras_require={
        "cluster": lines("cluster_requirements"),
        "dev": lines("dev_requirements") + lines("cluster_requirements"),
        "docs": lines("docs_requirements"),
    },
    entry_points={"console_scripts": lines("console_scripts")},
)
