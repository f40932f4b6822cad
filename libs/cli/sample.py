"""A sample file shaped like a real programme's: names, ids, amounts with cents. The same number of people, the same file."""

import csv
import random
from collections.abc import Iterator
from pathlib import Path

GIVEN = (
    "Achieng Akinyi Amina Asha Atieno Baraka Chebet Cherono Daudi Esther Fatuma Faith Grace Hassan Halima Ibrahim Imani "
    "Jabali Jelani Juma Kamau Karimi Kerubo Kipchoge Kiprop Lokwang Makena Mercy Mumbi Mutua Mwende Naliaka Nanjala "
    "Nekesa Njeri Nyambura Ochieng Odhiambo Otieno Rehema Salim Sanaipei Wafula Wairimu Wambui Wanjiku Yusuf Zawadi "
    "Zuhura Lerato André Zoë"
).split()
FAMILY = (
    "Abdi Achieng Ali Barasa Chelimo Chepkoech Ekai Ekiru Gitau Hussein Kariuki Kibet Kimani Kiplagat Korir Lokol Lomuria "
    "Mohamed Muthoni Mutiso Mwangi Ndungu Ngugi Njoroge Nyong'o Ochieng Okoth Omondi Onyango Otieno Rotich Ruto Wafula "
    "Wanjala Wanyama Were Langat Kosgei Chebet Müller"
).split()
SEED = 20261121


def people(count: int) -> Iterator[tuple[str, str, str, int]]:
    """(disbursement id, beneficiary id, name, amount in minor units); the second person stands there twice."""
    draw = random.Random(SEED)  # noqa: S311 - a sample, the same each time
    for number in range(1, count + 1):
        person = 2 if number == count // 2 else number
        household = draw.choice((1, 2, 3, 4, 5, 6))
        amount_minor = 185_000 + household * 42_550 + draw.randrange(0, 9_999)
        name = f"{draw.choice(GIVEN)} {draw.choice(FAMILY)}"
        yield f"DR26-11-{number:07d}", f"NRB{31_000_000 + person * 7:08d}", name, amount_minor


def address(beneficiary_id: str) -> str:
    """The financial address which the mapper has for a person: most have a bank account, some a wallet."""
    number = int(beneficiary_id[3:])
    if number % 10 == 3:
        return f"mobile_number:+2547{number:08d}.wallet_provider_name:M-Money.wallet_provider_code:MM.fa_type:MOBILE_WALLET"
    return f"account_number:0110{number:09d}.branch_code:014.bank_code:SIM.mobile_number:.email_address:.fa_type:BANK_ACCOUNT"


def write(path: Path, count: int) -> None:
    """CSV, as `almoner submit` reads it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("disbursement_id", "beneficiary_id", "beneficiary_name", "amount", "narrative"))
        for disbursement_id, beneficiary_id, name, amount_minor in people(count):
            amount = f"{amount_minor // 100}.{amount_minor % 100:02d}"
            rows.writerow((disbursement_id, beneficiary_id, name, amount, "Drought relief November 2026"))


def envelope_options(envelope_id: str, currency: str) -> list[str]:
    """The sample's envelope, as options of `almoner submit`."""
    return [
        "--envelope-id", envelope_id, "--programme", "DROUGHT-RELIEF", "--benefit-code", "CASH-2026", "--cycle",
        "2026-11", "--currency", currency,
    ]  # fmt: skip


if __name__ == "__main__":
    samples = Path(__file__).resolve().parents[2] / "docs" / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    write(samples / "drought-relief.csv", 20)
