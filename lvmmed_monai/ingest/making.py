"""The workers make what earlier runs did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lvmmed_monai.dicom.problems import DicomError
from lvmmed_monai.ingest.products import Product
from lvmmed_monai.ingest.run import Run

__all__ = ["make"]


class _Batch:
    """Products of one kind: those that are there already are taken over on the way."""

    def __init__(self, run: Run, products: Sequence[Product]) -> None:
        self.run = run
        self.products = products
        self.under_way: dict[int, tuple[Any, Product, str]] = {}

    def jobs(self) -> Iterator[Any]:
        """What has to be made."""
        for product in self.products:
            try:
                mark = product.mark()
            except DicomError as error:
                product.refuse(error)
                continue
            made = self.run.journal.outcome(product.key, mark)
            if made is not None and product.complete(made):
                product.accept(made)
                continue
            self.run.journal.forget(product.key)
            job = product.job()
            self.under_way[id(job)] = (job, product, mark)  # holds the job, so that no other gets its id
            yield job

    def keep(self, job: Any, made: dict[str, Any] | DicomError) -> None:
        """Record what a job gave; its files are on disk."""
        _, product, mark = self.under_way.pop(id(job))
        if isinstance(made, DicomError):
            product.refuse(made)
            return
        sources = product.sources(made)
        self.run.journal.keep_outcome(product.key, mark, made, sources)
        self.run.written += len(sources)
        product.accept(made)


def make(run: Run, products: Sequence[Product], function: Callable[[Any], dict[str, Any]], description: str) -> None:
    """Make the files of all products of one kind; one whose pixels cannot be read is listed as refused.

    Args:
        run: the ingest under way.
        products: of one kind.
        function: does the job of one.
        description: what is done, for the progress.
    """
    if not products:
        return
    batch = _Batch(run, products)
    for job, made in run.progress(run.workers.run(function, batch.jobs()), description, len(products)):
        batch.keep(job, made)
