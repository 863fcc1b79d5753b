"""Words that announce a telephone or identity number, in several languages."""

import re

PHONE_WORDS = """
phone tel telefon telephone téléphone telefono teléfono telefone telefoon telefonu tlf tfn mobile mobil mobiel mobilní móvil
movil cell cellulare celular cellphone handy gsm portable call fax whatsapp sms dial rufnummer rückruf erreichbar erreichen
bellen bereikbaar ring komórka komórk zadzwoń dzwoń appeler appelez joindre joignable llama llamar llame chiama chiamare
chiami ligue ligar contato contact contacto contatto kontakt ara arayın cep puh puhelin soita volat zavolej zavolejte číslo
ringa nås nummer 電話 电话 手机 手機 携帯 联系 聯絡 拨打 致电 전화 연락 휴대 핸드폰 тел телефон звон моб फोन मोबाइल
"""
ID_WORDS = """
ssn sin nino social security national identity id-number idnr tin tax taxpayer nif nie dni nss nir insee pesel cpf cnpj bsn
sofi burgerservicenummer steuer steuer-id steuernummer sozialversicherung identifikationsnummer codice fiscale numéro
sécurité sociale contribuinte aadhaar aadhar uid vatandaşlık kimlik personnummer rodné cédula curp passport
マイナンバー 個人番号 身份证 주민등록 инн снилс
"""
LOOK_BACK = 48  # bytes before a number


def _pattern(text: str) -> re.Pattern[str]:
    announcing = text.split()
    latin = "|".join(re.escape(w) for w in announcing if w.isalpha() and ord(w[0]) < 0x500)
    rest = "|".join(re.escape(w) for w in announcing if not (w.isalpha() and ord(w[0]) < 0x500))
    return re.compile(rf"(?<!\w)(?:{latin})(?!\w)|{rest}" if rest else rf"(?<!\w)(?:{latin})(?!\w)")


_PHONE, _ID = _pattern(PHONE_WORDS), _pattern(ID_WORDS)


SENTENCE_END = re.compile(
    r".*(?:[.!?][ \t]+|。)(?=[^\w\n]*[^\W\d_])", re.DOTALL
)  # followed by a word: the dot of `Tel. 030` does not end a sentence


def _sentence(before: str) -> str:
    """Return the text before a number in its sentence; after a full stop only the last word, an abbreviation (`Tel. 030`)."""
    rest = SENTENCE_END.sub("", before.rpartition("\n")[2].lower())
    return rest.split()[-1] if rest.rstrip().endswith((".", "。")) and rest.split() else rest


def announces_phone(before: str) -> bool:
    """Return True if the text right before a number, in its sentence and line, announces a telephone number."""
    return bool(_PHONE.search(_sentence(before)))


def announces_id(before: str) -> bool:
    """Return True if the text right before a number, in its sentence and line, announces an identity number."""
    return bool(_ID.search(_sentence(before)))
