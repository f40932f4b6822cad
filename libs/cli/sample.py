"""A sample file shaped like a real programme's: names, ids, amounts with cents. The same number of people, the same file."""

import csv
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from libs.local.reference import Place, Reference

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
        "--envelope-id", envelope_id, "--programme", PROGRAMME, "--benefit-code", "CASH-2026", "--cycle",
        "2026-11", "--currency", currency,
    ]  # fmt: skip


# --- Goods, and cash through agencies: the same people, in 40 small zones -----------------------------------------------

COUNTIES = ("Turkana", "Marsabit", "Garissa", "Isiolo")
WARDS = 10  # of each county
SERVED = ("RICE-2026", "CASH-AGENCY")  # benefit codes of every place
PROGRAMME = "DROUGHT-RELIEF"


def zone(beneficiary_id: str) -> tuple[str, str, str, str]:
    """The registry's entry of a person: large zone's id and code, small zone's id and code."""
    ward = (int(beneficiary_id[3:]) - 31_000_000) // 7 % (len(COUNTIES) * WARDS)
    county, number = divmod(ward, WARDS)
    return f"KE-{county + 1}", COUNTIES[county], f"KE-{county + 1}-{number + 1:02d}", f"{COUNTIES[county]} ward {number + 1}"


def warehouses() -> list[Place]:
    """One for each county, and a second one in the first, so that there is something to choose."""
    return [
        Place(
            id=number + 1,
            mnemonic=f"STORE-{number + 1}",
            name=f"{COUNTIES[county]} grain store{' (east)' if number >= len(COUNTIES) else ''}",
            zones=[f"KE-{county + 1}"],
            serves=[(PROGRAMME, code, None) for code in SERVED],
            admin_name="Store keeper",
            admin_email=f"store{number + 1}@example.org",
            admin_mobile=f"+25470000{number + 1:04d}",
        )
        for number, county in enumerate([*range(len(COUNTIES)), 0])
    ]


def agencies(without: int = 0) -> list[Place]:
    """One for each ward, but not for the last `without` of them."""
    wards = [(county, ward) for county in range(len(COUNTIES)) for ward in range(WARDS)]
    return [
        Place(
            id=number + 1,
            mnemonic=f"COOP-{number + 1:02d}",
            name=f"{COUNTIES[county]} cooperative {ward + 1}",
            zones=[f"KE-{county + 1}-{ward + 1:02d}"],
            serves=[(PROGRAMME, code, None) for code in SERVED],
            admin_name="Cooperative's cashier",
            admin_email=f"coop{number + 1}@example.org",
            admin_mobile=f"+25471000{number + 1:04d}",
            account=f"#ACCOUNT#0220{number + 1:08d}#TYPE#CURRENT#BRANCH#014#BANK#SIM#",
        )
        for number, (county, ward) in enumerate(wards[: len(wards) - without])
    ]


def settle(reference: Reference, beneficiary_ids: Iterable[str], without: int = 0) -> None:
    """Have the registry know these people, and PBMS all warehouses and all agencies but the last `without`."""
    reference.put_people((one, *zone(one)) for one in beneficiary_ids)
    for place in warehouses():
        reference.put_warehouse(place)
    for place in agencies(without):
        reference.put_agency(place)


def write_goods(path: Path, count: int) -> None:
    """The same people, each with kilograms of rice to the gram, and where they are told."""
    draw = random.Random(SEED + 1)  # noqa: S311 - a sample, the same each time
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("disbursement_id", "beneficiary_id", "beneficiary_name", "amount", "narrative", "email", "phone"))
        for disbursement_id, beneficiary_id, name, _ in people(count):
            amount = f"{draw.choice((25, 50, 75))}.{draw.choice((0, 250, 500)):03d}"
            number = int(beneficiary_id[3:])
            email = f"person{number}@example.org" if number % 3 == 0 else ""
            rows.writerow((disbursement_id, beneficiary_id, name, amount, "Rice, November 2026", email, f"+2547{number:08d}"))


def goods_options(envelope_id: str) -> list[str]:
    """The envelope of rice, as options of `almoner submit`."""
    return [
        "--envelope-id", envelope_id, "--programme", PROGRAMME, "--benefit-code", "RICE-2026", "--benefit-type", "COMMODITY",
        "--cycle", "2026-11", "--unit", "kg", "--unit-scale", "3",
    ]  # fmt: skip


def agency_cash_options(envelope_id: str, currency: str) -> list[str]:
    """The envelope of cash that agencies hand out, as options of `almoner submit`."""
    return [
        "--envelope-id", envelope_id, "--programme", PROGRAMME, "--benefit-code", "CASH-AGENCY", "--benefit-type",
        "CASH_PHYSICAL", "--cycle", "2026-11", "--currency", currency,
    ]  # fmt: skip


if __name__ == "__main__":
    samples = Path(__file__).resolve().parents[2] / "docs" / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    write(samples / "drought-relief.csv", 20)
    write_goods(samples / "drought-relief-rice.csv", 20)
