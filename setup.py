"""Packages that pyproject.toml cannot describe: kernels/ is installed as fastdl.kernels."""

from pathlib import Path

from setuptools import find_packages, setup

version = next(
    line.split('"')[1]
    for line in Path(__file__).with_name("fastdl").joinpath("__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    version=version,
    license="MIT",  # here, since setuptools before 77 does not take the expression from pyproject.toml
    packages=[*find_packages(include=["fastdl", "fastdl.*"]), "fastdl.kernels"],
    package_dir={"fastdl.kernels": "kernels"},
    package_data={"fastdl": ["py.typed"]},
)
