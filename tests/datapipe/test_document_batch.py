"""A batch of documents: what is known of its texts stays true of those that are kept."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.datapipe.text.document import Document
from ropewalk.datapipe.text.document_batch import HEAD_BYTES, SPANS, DocumentBatch

TEXT = st.text(alphabet=st.sampled_from(" \nab.'中é🪢\u0301"), max_size=30)


@given(texts=st.lists(st.tuples(TEXT, st.booleans()), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_words_tokens_and_lines_of_kept_documents_equal_fresh_ones(texts: list[tuple[str, bool]]) -> None:
    batch = DocumentBatch.of_texts([text for text, _ in texts])
    for name in SPANS:
        getattr(batch, name)
    remaining = batch.keep(np.array([stays for _, stays in texts])).keep(
        np.array([stays for _, stays in texts if stays], np.bool_)
    )
    anew = DocumentBatch.of_texts([text for text, stays in texts if stays])
    for name in SPANS:
        assert name in remaining.__dict__, "it was found already"
        for mine, theirs in zip(getattr(remaining, name), getattr(anew, name), strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.tolist() == theirs.tolist()


@given(texts=st.lists(st.tuples(TEXT, st.none() | TEXT), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_what_is_known_of_texts_that_a_filter_has_not_changed_stays_true(texts: list[tuple[str, str | None]]) -> None:
    batch = DocumentBatch.of_texts([text for text, _ in texts])
    for name in SPANS:
        getattr(batch, name)
    others = [text if other is None else other for text, other in texts]
    created, anew = batch.with_texts(pa.array(others, pa.large_string())), DocumentBatch.of_texts(others)
    differ = [len(other.encode()) for (text, _), other in zip(texts, others, strict=True) if other != text]
    assert all(name in created.__dict__ for name in SPANS) == (2 * sum(differ) <= sum(len(other.encode()) for other in others))
    for name in SPANS:
        for mine, theirs in zip(getattr(created, name), getattr(anew, name), strict=True):
            assert mine.dtype == theirs.dtype
            assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize("offset", [0, 2])
def test_rejections_name_each_document_with_its_reason_and_its_head(offset: int) -> None:
    texts = ["é" * HEAD_BYTES, "", "short", "x" * HEAD_BYTES + "y", "kept"]
    documents = [Document(3, n + 7, None if n == 1 else f"id-{n}", "book", text) for n, text in enumerate(texts)]
    batch = DocumentBatch(DocumentBatch.of(documents).records.slice(offset))
    rows = np.array([0, 1]) if offset else np.array([0, 1, 3])
    result = batch.rejections(rows, ["a", "b", "c"][: len(rows)])
    for row, reason, item in zip(rows.tolist(), "abc", result, strict=False):
        document = documents[row + offset]
        assert (item.file, item.line, item.id, item.source, item.reason) == (3, document.line, document.id, "book", reason)
        assert item.head == document.text.encode()[:HEAD_BYTES].decode(errors="ignore")


def test_no_document_is_kept() -> None:
    batch = DocumentBatch.of_texts(["a b", "c"])
    assert len(batch.words.start) == 3
    none = batch.keep(np.zeros(2, np.bool_))
    assert len(none.words.start) == 0
    assert none.words.first.tolist() == [0]
    assert none.records.schema.field("text").type == pa.large_string()
