"""What model code might try over the network; enters itself into ATTACKS."""

import socket
import tempfile
import urllib.request

from utils.tests.jobs.attacks import Scene, attack


@attack
def connect_over_tcp(scene: Scene):
    assert socket.create_connection(("127.0.0.1", scene.tcp), 5).recv(5)


@attack
def connect_over_tcp_6(scene: Scene):
    socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()


@attack
def fetch_over_http(scene: Scene):
    with urllib.request.urlopen(f"http://127.0.0.1:{scene.tcp}/", timeout=5) as answer:
        answer.read(1)


@attack
def listen_on_tcp(scene: Scene):
    socket.create_server(("127.0.0.1", 0)).close()


@attack
def send_over_udp(scene: Scene):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", scene.udp))


@attack
def send_to_a_name_server(scene: Scene):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 53))


@attack
def open_a_raw_socket(scene: Scene):
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


@attack
def open_a_packet_socket(scene: Scene):
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


@attack
def open_a_netlink_socket(scene: Scene):
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()


@attack
def talk_to_the_hypervisor(scene: Scene):
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()


@attack
def connect_to_a_local_server(scene: Scene):
    socket.socket(socket.AF_UNIX).connect(f"{scene.outside}/server")


@attack
def connect_to_an_abstract_server(scene: Scene):
    socket.socket(socket.AF_UNIX).connect("\0" + scene.abstract)


@attack
def send_to_a_local_server_by_a_pair(scene: Scene):
    one, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", f"{scene.outside}/datagrams")


@attack
def make_a_local_server(scene: Scene):
    with tempfile.TemporaryDirectory() as folder:
        socket.socket(socket.AF_UNIX).bind(f"{folder}/s")
