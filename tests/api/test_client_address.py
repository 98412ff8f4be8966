"""Whose request it is behind a reverse proxy: the proxy is believed about the address before it, nobody else."""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.client_address import MOST_PROXIES, TrustedProxies, parsed
from tests.people import PASSWORD, Person, make_person
from tests.service import KEY, PLAIN, Service, running_service
from tests.service_manager.running import managed_service

PROXY, OTHER_PROXY, STRANGER = "127.0.9.1", "127.0.9.2", "127.0.8.1"
TRUSTED = ("10.0.0.0/8", "fd00::/8")
proxies = TrustedProxies(TRUSTED)

trusted_addresses = st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8")
addresses = st.ip_addresses().map(lambda each: getattr(each, "ipv4_mapped", None) or each)
clients = addresses.filter(lambda each: not any(each in ipaddress.ip_network(network) for network in TRUSTED))


@st.composite
def written(draw: st.DrawFn, among: st.SearchStrategy[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> str:
    """Draw one of the ways in which proxies write an address."""
    address = draw(among)
    port = draw(st.integers(0, 65535))
    space = draw(st.sampled_from(["", " ", "\t "]))
    if isinstance(address, ipaddress.IPv4Address):
        forms = [str(address), f"{address}:{port}", f"::ffff:{address}", f"[::ffff:{address}]:{port}"]
    else:
        forms = [
            str(address),
            address.exploded.upper(),
            f"[{address}]",
            f"[{address}]:{port}",
            f"{address}%eth0",
        ]
    return space + draw(st.sampled_from(forms)) + space


@given(written(addresses))
def test_an_address_is_read_in_every_form(text: str) -> None:
    plain = text.strip().strip("[").partition("]")[0].partition("%")[0]
    if plain.count(":") == 1:
        plain = plain.partition(":")[0]
    expected = ipaddress.ip_address(plain)
    assert parsed(text) == (getattr(expected, "ipv4_mapped", None) or expected)


@pytest.mark.parametrize(
    "entry",
    [
        *("", " ", "unknown", "_hidden", "10.0.0", "10.0.0.256", "010.0.0.1", "10.0.0.1/8", "10.0.0.1:", "a"),
        *(
            "10.0.0.1:65536",
            "10.0.0.1:x",
            "[10.0.0.1]",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:",
            "[::1]:99999",
            "[]",
        ),
        *(
            "[[::1]]",
            ":::",
            "1::2::3",
            '"::1"',
            "for=1.2.3.4",
            "1.2.3.4 5.6.7.8",
            "1.2.3.4\n",
            "١.2.3.4",
            "\0",
        ),
        "::1%" + "z" * 100,
    ],
)
def test_what_is_no_address_is_none(entry: str) -> None:
    assert parsed(entry) is None
    assert proxies.client("10.0.0.1", [f"192.0.2.1, {entry}"]) == "10.0.0.1"


@given(st.text() | st.text("0123456789abcdef:.[]%, \t", max_size=100), st.text())
def test_no_text_is_taken_for_anything_but_an_address(entry: str, peer: str) -> None:
    parsed(entry)
    found = proxies.client("10.0.0.1", [entry])
    assert ipaddress.ip_address(found) is not None
    # Who is not known to be a proxy is believed nothing.
    if parsed(peer) is None:
        assert proxies.client(peer, ["192.0.2.1"]) == peer


@given(clients, st.lists(st.text(max_size=30)))
def test_a_peer_that_is_no_trusted_proxy_stays_what_it_is(
    peer: ipaddress.IPv4Address, header: list[str]
) -> None:
    assert proxies.client(str(peer), header) == str(peer)
    assert TrustedProxies(()).client("10.0.0.1", ["192.0.2.1"]) == "10.0.0.1"


@given(
    st.data(),
    st.lists(st.text(max_size=20) | written(clients) | written(trusted_addresses), max_size=20),
    clients,
    st.lists(written(trusted_addresses), max_size=MOST_PROXIES - 1),
    written(trusted_addresses),
)
def test_the_client_is_the_last_that_no_trusted_proxy_is_whatever_it_invented(
    data: st.DataObject,
    invented: list[str],
    client: ipaddress.IPv4Address,
    chain: list[str],
    peer: str,
) -> None:
    entries = [*invented, data.draw(written(st.just(client))), *chain]
    headers = [entries[0]]
    for entry in entries[1:]:  # a header of its own for some
        if data.draw(st.booleans()):
            headers.append(entry)
        else:
            headers[-1] += f",{entry}"

    assert proxies.client(peer.strip().strip("[").partition("]")[0], headers) == str(client)


@given(st.lists(written(trusted_addresses), max_size=2 * MOST_PROXIES))
def test_without_a_client_it_is_the_proxy(chain: list[str]) -> None:
    assert proxies.client("10.0.0.1", chain) == "10.0.0.1"


def test_more_proxies_than_there_can_be_are_not_believed() -> None:
    chain = ["10.0.0.2"] * (MOST_PROXIES - 1)
    assert proxies.client("10.0.0.1", ["192.0.2.1", *chain]) == "192.0.2.1"
    assert proxies.client("10.0.0.1", ["192.0.2.1", *chain, "10.0.0.2"]) == "10.0.0.1"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Start a service that trusts two proxies of this machine's own addresses."""
    folder = tmp_path_factory.mktemp("proxied") / "data"
    with running_service(folder, APPLIANCE_TRUSTED_PROXIES=f"{PROXY}, {OTHER_PROXY}/32") as service:
        yield service


def through(service: Service, proxy: str, *forwarded: str, key: str | None = None) -> httpx.Client:
    """Return a client whose connections come from ``proxy``, with these X-Forwarded-For headers."""
    headers = [("X-Forwarded-For", each) for each in forwarded]
    if key is not None:
        headers.append(("Authorization", f"Bearer {key}"))
    transport = httpx.HTTPTransport(verify=PLAIN, local_address=proxy)
    return httpx.Client(base_url=service.base_url, transport=transport, headers=headers, timeout=60)


def log_in(http: httpx.Client, person: Person, password: str = PASSWORD) -> int:
    body = {"email": person.email, "password": password}
    return http.post("/v1/auth/login", json=body).status_code


def last_source(service: Service, action: str) -> str:
    with service.http as http:
        lines = http.get("/v1/admin/audit", params={"action": action, "limit": 1}).json()["data"]
    source: str = lines[0]["source"]
    return source


def test_logins_are_slowed_down_by_client_not_by_proxy(proxied: Service) -> None:
    person = make_person(proxied)
    with through(proxied, PROXY, "198.51.100.1") as guesser, through(proxied, PROXY, "198.51.100.2") as owner:
        assert [log_in(guesser, person, "wrong") for _ in range(5)] == [401] * 5
        time.sleep(2.1)  # that wait is over: the next is twice as long, enough for what follows
        assert log_in(guesser, person, "wrong") == 401
        assert log_in(guesser, person) == 429
        # What it puts before its own address changes nothing.
        with through(proxied, OTHER_PROXY, "203.0.113.5, 198.51.100.1", PROXY) as inventive:
            assert log_in(inventive, person, "wrong") == 429
        assert last_source(proxied, "login.refuse") == "198.51.100.1"
        assert log_in(owner, person) == 200


def test_the_audit_log_names_the_client(proxied: Service) -> None:
    for number, (proxy, header, source) in enumerate(
        [
            (PROXY, "203.0.113.5, 2001:db8::7", "2001:db8::7"),
            (PROXY, "[2001:db8::8]:4711", "2001:db8::8"),
            (PROXY, f"198.51.100.3:80, {OTHER_PROXY}", "198.51.100.3"),
            (PROXY, "<script>", PROXY),
            (PROXY, "9" * 10_000, PROXY),
            (STRANGER, "198.51.100.4", STRANGER),
        ]
    ):
        with through(proxied, proxy, header, key=proxied.key) as http:
            made = http.post("/v1/admin/organizations", json={"name": f"from-{number}"})
        assert made.status_code == 201
        assert last_source(proxied, "organization.create") == source


def test_refused_keys_are_counted_by_client(tmp_path: Path) -> None:
    with running_service(tmp_path / "data", APPLIANCE_TRUSTED_PROXIES=PROXY) as service:
        for header in ("198.51.100.9", "198.51.100.9", "198.51.100.10"):
            with through(service, PROXY, header, key="sk-wrong") as http:
                assert http.get("/v1/models").status_code == 401
    with running_service(tmp_path / "data") as service, service.http as http:
        lines = http.get("/v1/admin/audit", params={"action": "key.refuse"}).json()["data"]

    counts: dict[str, int] = {}
    for line in lines:  # the minute may have turned meanwhile
        counts[line["source"]] = counts.get(line["source"], 0) + line["details"]["requests"]
    assert counts == {"198.51.100.9": 2, "198.51.100.10": 1}


def test_without_the_setting_not_even_this_machine_is_believed(bare_service: Service) -> None:
    with through(bare_service, "127.0.0.1", "198.51.100.5", key=bare_service.key) as http:
        assert http.post("/v1/admin/organizations", json={"name": "not-proxied"}).status_code == 201
    assert last_source(bare_service, "organization.create") == "127.0.0.1"


@pytest.mark.parametrize(
    ("trusted", "source"), [(PROXY, "198.51.100.6"), (STRANGER, PROXY)], ids=["trusted", "not-trusted"]
)
def test_an_ipv4_client_of_a_socket_for_both_families_is_named_by_its_ipv4_address(
    tmp_path: Path, trusted: str, source: str
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    with (
        # As systemd makes it of ListenStream=443.
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener,
        managed_service(
            tmp_path,
            listener,
            APPLIANCE_BOOTSTRAP_KEY_FILE=str(key_file),
            APPLIANCE_ALLOW_PLAIN_HTTP="true",
            APPLIANCE_TRUSTED_PROXIES=trusted,
        ) as box,
    ):
        box.wait_until_ready()
        transport = httpx.HTTPTransport(verify=PLAIN, local_address=PROXY)
        with httpx.Client(base_url=f"http://127.0.0.1:{box.port}", transport=transport, timeout=60) as http:
            headers = {"Authorization": f"Bearer {KEY}", "X-Forwarded-For": "198.51.100.6"}
            made = http.post("/v1/admin/organizations", json={"name": "over IPv4"}, headers=headers)
        assert made.status_code == 201, made.text
        listed = box.command("audit", "list", "--action", "organization.create", "--json")
    assert [line["source"] for line in json.loads(listed.stdout)] == [source]
