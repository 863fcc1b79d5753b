"""Texts of many locales into which personal data were planted, each item with its kind and place; Faker makes both."""

import random
from dataclasses import dataclass
from typing import Any

from faker import Faker
from stdnum import iban

LOCALES = (
    *("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL"),
    *("pt_BR", "sv_SE", "ja_JP", "zh_CN", "ko_KR", "tr_TR", "fi_FI"),
)
SENTENCES: dict[str, dict[str, str]] = {
    "en": {"phone": "Call me on {}", "national_id": "Her social security number is {}", "email": "Write to {}"},
    "de": {"phone": "Tel.: {}", "national_id": "Die Sozialversicherung kennt sie als {}", "email": "Schreiben Sie an {}"},
    "fr": {"phone": "Téléphone : {}", "national_id": "Numéro de sécurité sociale {}", "email": "Écrivez à {}"},
    "es": {"phone": "Llame al {}", "national_id": "Su DNI es {}", "email": "Escriba a {}"},
    "it": {"phone": "Cell. {}", "national_id": "Codice fiscale {}", "email": "Scrivere a {}"},
    "nl": {"phone": "Bel mij, telefoon {}", "national_id": "Het BSN is {}", "email": "Mail naar {}"},
    "pl": {"phone": "Telefon {}", "national_id": "PESEL {}", "email": "Proszę pisać na {}"},
    "pt": {"phone": "Ligue para {}", "national_id": "O CPF dela é {}", "email": "Escreva para {}"},
    "sv": {"phone": "Ring {}", "national_id": "Hennes personnummer är {}", "email": "Skriv till {}"},
    "ja": {"phone": "電話番号は{}", "national_id": "番号は {} です", "email": "メールは {} まで"},
    "zh": {"phone": "联系电话:{}", "national_id": "身份证号码:{}", "email": "邮箱:{}"},
    "ko": {"phone": "전화: {}", "national_id": "주민등록번호 {}", "email": "이메일 {}"},
    "tr": {"phone": "Telefon: {}", "national_id": "T.C. kimlik no {}", "email": "E-posta: {}"},
    "fi": {"phone": "Puhelin {}", "national_id": "Henkilötunnus {}", "email": "Kirjoita osoitteeseen {}"},
}
OTHERS = {"ip": "from {}", "card": "Visa {}", "iban": "IBAN {}"}
DECOYS = (
    *("on 2024-11-26 at 14:05:33", "version 3.11.4", "order 48213", "pages 1200-1345", "0x7ffe12345678", "€ 1.234.567,89"),
    *("ISBN 978-3-16-148410-0", "build 1700000000", "1234567890123", "3.141592653589793", "12 345 678 people", "2147483647"),
    *("[1, 2, 3, 4, 5, 6, 7, 8]", "commit 9fceb02d0ae598e95dc970b74767f19372d61af8", "std::vector", "@override", "f(x) = x@y"),
    *("room 12/345", "sha256:e3b0c44298fc1c149afbf4c8996fb924", "09:30-17:45"),
)


@dataclass(frozen=True)
class Planted:
    """A text and the (kind, start, end) of all personal data in it, in characters."""

    locale: str
    text: str
    items: tuple[tuple[str, int, int], ...]


def _item(fake: Any, kind: str, draw: random.Random) -> str:
    if kind == "email":
        return str(fake.email())
    if kind == "phone":
        return str(fake.phone_number())
    if kind == "ip":
        return str(fake.ipv4_public() if draw.random() < 0.6 else fake.ipv6())
    if kind == "card":
        number = str(fake.credit_card_number())
        return " ".join(number[i : i + 4] for i in range(0, 16, 4)) if len(number) == 16 and draw.random() < 0.3 else number
    if kind == "iban":
        number = str(fake.iban())
        if not iban.is_valid(number):  # Faker makes some of a wrong length; the oracle is python-stdnum
            number = "DE" + iban.calc_check_digits(f"DE00{(body := f'{draw.randrange(10**18):018d}')}") + body
        return " ".join(number[i : i + 4] for i in range(0, len(number), 4)) if draw.random() < 0.3 else number
    return str(fake.nif() if hasattr(fake, "nif") else fake.ssn())


def plant(locale: str, count: int, seed: int) -> list[Planted]:
    """`count` texts of a locale, each with one to three items among sentences and numbers that are nobody's."""
    fake, draw = Faker(locale), random.Random(seed)
    fake.seed_instance(seed)
    sentences = SENTENCES[locale[:2]]
    created: list[Planted] = []
    for _ in range(count):
        text, items = "", []
        for kind in draw.sample(["email", "phone", "ip", "card", "iban", "national_id"], draw.randint(1, 3)):
            lead, _, tail = {**OTHERS, **sentences}[kind].partition("{}")
            value = _item(fake, kind, draw)
            text += f"{fake.sentence()} {draw.choice(DECOYS)}. {lead}"
            items.append((kind, len(text), len(text) + len(value)))
            text += value + tail + draw.choice([". ", ", ", "\n", " "])
        created.append(Planted(locale, text + str(fake.sentence()), tuple(items)))
    return created


def score(planted: list[Planted], find: Any) -> dict[str, Any]:
    """Recall, precision, and the errors: an item counts as found where a span of its kind covers it."""
    hits, items, spans = 0, 0, 0
    missed: list[tuple[str, ...]] = []
    wrong: list[tuple[str, ...]] = []
    for item in planted:
        result = find(item.text)
        spans += len(result)
        items += len(item.items)
        for kind, start, end in item.items:
            if any(f.kind == kind and f.start <= start and f.end >= end for f in result):
                hits += 1
            else:
                missed.append((item.locale, kind, item.text[start:end], item.text[max(start - 30, 0) : end + 10]))
        wrong += [
            (item.locale, f.kind, item.text[f.start : f.end], item.text[max(f.start - 30, 0) : f.end + 10])
            for f in result
            if not any(kind == f.kind and start < f.end and f.start < end for kind, start, end in item.items)
        ]
    return {"items": items, "recall": hits / items, "precision": 1 - len(wrong) / max(spans, 1), "missed": missed, "wrong": wrong}
