"""What a filter is: options, and a function from a document to the reason for dropping it."""

from abc import abstractmethod

from cluster.config import Section
from datapipe.document import Document


class Filter(Section):
    """Drops documents one by one. The fields of a subclass are its options, which are part of a data set's lineage.

    A filter decides by the document and its options alone, so that a data set does not depend on who made it or in what order.
    """

    @abstractmethod
    def reject(self, document: Document) -> str | None:
        """The reason for dropping the document, one of a few words such as `too_short`, since they are counted; None keeps it."""
