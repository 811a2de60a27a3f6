"""The result page of one experiment: what it says, the pictures, and the numbers under them."""

from __future__ import annotations

from chameleon_ray import storage
from chameleon_ray.records import write_table
from chameleon_ray.report.data import BEFORE, ReportData

__all__ = ["BEFORE", "ReportData", "write_report"]


def write_report(data: ReportData, folder: str) -> str:
    """Write `report.html` (self-contained), `report.md`, `pictures/*.png` and `numbers/*.parquet` into a folder.

    Args:
        data: the results of one experiment.
        folder: a storage address.
    Returns:
        The address of report.html, which is written last.
    Cost: some seconds for the pictures; the map of embeddings adds the import and compilation of UMAP, half a minute on a slow machine.
    """
    from chameleon_ray.report.content import build_report
    from chameleon_ray.report.page import to_html, to_markdown
    from chameleon_ray.report.styles import Picture

    report = build_report(data)
    for name, table in report.numbers.items():
        write_table(storage.join(folder, "numbers", f"{name}.parquet"), table)
    for section in report.sections:
        for block in section.blocks:
            if isinstance(block, Picture):
                storage.write_bytes(storage.join(folder, "pictures", f"{block.name}.png"), block.light)
    storage.write_bytes(storage.join(folder, "report.md"), to_markdown(report).encode())
    address = storage.join(folder, "report.html")
    storage.write_bytes(address, to_html(report).encode())
    return address
