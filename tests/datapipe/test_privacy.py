"""Personal data is found where it stands, in fifteen locales, and nowhere else; placeholders say what it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import iban, luhn

from ropewalk.datapipe.filters.privacy.banking import IBAN_LENGTHS, find_iban, is_card
from ropewalk.datapipe.filters.privacy.detect import find
from ropewalk.datapipe.filters.privacy.replace import replace
from ropewalk.datapipe.text.batch import TextBatch
from tests.fakes.personal import LOCALES, plant, score


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("Mail me: jane.doe+x@mail.example.org, please", "email", "jane.doe+x@mail.example.org"),
        ("我的邮箱是abc@example.com。", "email", "abc@example.com"),
        ("call +49 (0) 9141 777631 now", "phone", "+49 (0) 9141 777631"),
        ("(206) 269-0743x9150 is hers", "phone", "(206) 269-0743x9150"),
        ("Tel.: 5272868387", "phone", "5272868387"),
        ("ping 10.11.12.13 first", "ip", "10.11.12.13"),
        ("at 2001:db8::ff00:42:8329, the", "ip", "2001:db8::ff00:42:8329"),
        ("pay with 4111 1111 1111 1111!", "card", "4111 1111 1111 1111"),
        ("to DE89 3704 0044 0532 0130 00 today", "iban", "DE89 3704 0044 0532 0130 00"),
        ("SSN 219-09-9999.", "national_id", "219-09-9999"),
        ("NIF 12345678Z", "national_id", "12345678Z"),
        ("Größe 🪢 RSSMRA85T10A562S é", "national_id", "RSSMRA85T10A562S"),
    ],
)
def test_one_of_each_is_found_at_its_place(text: str, kind: str, what: str) -> None:
    assert [(s.kind, text[s.start : s.end]) for s in find(text)] == [(kind, what)]


@pytest.mark.parametrize(
    "text",
    [
        "on 2024-11-26 at 14:05:33, version 1.2.3 of 26.11.2024",
        "4111 1111 1111 1112 fails its check digit",
        "DE88 3704 0044 0532 0130 00 fails its own",
        "0x7ffe12345678 and 9fceb02d0ae598e95dc970b74767f19372d61af8",
        "@property\ndef f(x): return x@y",
        "00 00 00 00 01 02 03 04 05 06 07 08",
        "localhost is 127.0.0.1 or ::1, the mask 255.255.255.0",
        "std::vector<a::b> 12:34:56 fe:ed:fa:ce:00:01",
        "ISBN 978-3-16-148410-0, Boston, MA 02111-1307",
        "",
        "@@@@....::::----((((",
    ],
)
def test_numbers_of_nobody_are_left_alone(text: str) -> None:
    assert find(text) == []


def test_fifteen_locales_by_faker() -> None:
    """A sample of the ten thousand items that the benchmark plants."""
    result = score([item for locale in LOCALES for item in plant(locale, 30, seed=5)], find)
    assert result["items"] > 800
    assert result["recall"] >= 0.98, result["missed"]
    assert result["precision"] >= 0.98, result["wrong"]


@pytest.mark.soak("ten thousand items; make test runs eight hundred")
def test_ten_thousand_items_of_fifteen_locales() -> None:
    result = score([item for locale in LOCALES for item in plant(locale, 360, seed=11)], find)
    assert result["items"] > 10_000
    assert min(result["recall"], result["precision"]) >= 0.98, (result["missed"][:20], result["wrong"][:20])


@given(st.text("0123456789", min_size=12, max_size=19))
@settings(max_examples=300, deadline=None)
def test_cards_and_ibans_are_checked_by_python_stdnum(digits: str) -> None:
    card = "4" + digits[1:12].rjust(14, "1")
    assert is_card(card + luhn.calc_check_digit(card))
    assert not is_card(card + str((int(luhn.calc_check_digit(card)) + 1) % 10))
    for country in ("DE", "GB", "NO", "MT"):
        body = (digits * 3)[: IBAN_LENGTHS[country] - 4]
        number = country + iban.calc_check_digits(f"{country}00{body}") + body
        assert find_iban(number) == len(number)


@pytest.mark.parametrize(
    ("valid", "invalid"),
    [
        ("NIE X2482300W", "NIE X2482300A"),
        ("RCCMNL83S18D969H", "RCCMNL83S18D969I"),
        ("numéro 2 95 10 99 126 111 93", "numéro 2 95 10 99 126 111 94"),
        ("PESEL 44051401359", "PESEL 44051401358"),
        ("PESEL 83010411457", "PESEL 82023010008"),
        ("390.533.447-05", "390.533.447-06"),
        ("kimlik 17291716060", "kimlik 17291716050"),
        ("身份证 360426199101010071", "身份证 360426199101010072"),
        ("주민등록 210101-3123450", "주민등록 210101-9123450"),
        ("personnummer 880320-0016", "personnummer 880320-0018"),
        ("131052-308T", "131052-308U"),
        ("290999-905P", "310299-905B"),
        ("151086 95088", "151086 95077"),
        ("211062-5629", "211362-5629"),
        ("710319/2745", "710319/2744"),
        ("991231/123", "551231/123"),
        ("85.07.30-033.28", "85.07.30-033.29"),
        ("756.9217.0769.85", "756.9217.0769.84"),
        ("2341 2341 2346", "2341 2341 2347"),
        ("マイナンバー 6214 9832 0257", "マイナンバー 6214 9832 0258"),
        ("инн 500100732259", "инн 500100732258"),
        ("Steuer-ID 36 574 261 809", "Steuer-ID 36 574 261 808"),
        ("BSN 1112.22.333", "BSN 1112.52.333"),
        ("NIF 501 964 843", "NIF 501 964 842"),
        ("BOXW310820HNERXN09", "BOXW310820HNERXN08"),
    ],
)
def test_identity_numbers_of_states(valid: str, invalid: str) -> None:
    assert [span.kind for span in find(valid)] == ["national_id"]
    assert "national_id" not in [span.kind for span in find(invalid)]


def test_a_batch_is_rewritten_text_by_text() -> None:
    texts = ["a@b.example and c@d.example", "", "nothing", "naïve 🪢 4111111111111111 ende"]
    changed, counts = replace(TextBatch.of(texts), ("email", "card"))
    assert changed.arrow().to_pylist() == ["<EMAIL> and <EMAIL>", "", "nothing", "naïve 🪢 <CARD> ende"]
    assert counts == {"email": 2, "card": 1}
    assert replace(TextBatch.of(texts), ("iban",))[0].arrow().to_pylist() == texts


@given(st.lists(st.text(max_size=60), max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_text_survives(texts: list[str]) -> None:
    """Whatever is not replaced stays byte for byte, and a text is judged by itself, whatever stands beside it."""
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    changed, _ = replace(TextBatch.of(texts))
    alone = [replace(TextBatch.of([text]))[0].text(0) for text in texts]
    assert changed.arrow().to_pylist() == alone
    assert [text for text, item in zip(texts, alone, strict=True) if not find(text) and item != text] == []
