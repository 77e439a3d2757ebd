#!/usr/bin/env python3
"""Tries the promises of a relay on several of them, and prints what their peers see.

Run as root in a network namespace of its own:
    unshare -n sh -c 'ip link set lo up; python3 benches/beyond/trials.py --tidegate target/release/tidegate'
It judges nothing: each line is one observation. `--only NAME,...` picks relays, `--trials NAME,...` trials.
"""
import argparse, array, ctypes, fcntl, os, select, shutil, signal, socket, struct, subprocess, sys, tempfile, termios
import threading, time

HERE = os.path.dirname(os.path.abspath(__file__))
PORT, BACKENDS = 17300, [("127.0.0.1", 9301), ("127.0.0.1", 9302)]
BLOCK = bytes(range(251)) * 4000
DEADLINE = 10  # seconds that any one receive may take


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def unacknowledged(sock):
    count = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def receive_all(sock):
    """All the bytes, and how they ended."""
    sock.settimeout(DEADLINE)
    parts = []
    while True:
        try:
            part = sock.recv(1 << 20)
        except ConnectionResetError:
            return b"".join(parts), "reset"
        except socket.timeout:
            return b"".join(parts), "nothing for %d s" % DEADLINE
        except OSError as error:
            return b"".join(parts), str(error)
        if not part:
            return b"".join(parts), "end"
        parts.append(part)


class Backends:
    """Both backends; each connection is served by `serve`."""

    def __init__(self, serve):
        self.serve, self.listeners = serve, []
        for address in BACKENDS:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(512)
            self.listeners.append(listener)
            threading.Thread(target=self.accept, args=(listener,), daemon=True).start()

    def accept(self, listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.one, args=(connection,), daemon=True).start()

    def one(self, connection):
        try:
            self.serve(connection)
        except OSError:
            pass
        finally:
            connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for listener in self.listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def echo(connection):
    while part := connection.recv(1 << 16):
        connection.sendall(part)


def connect():
    return socket.create_connection(("127.0.0.1", PORT), timeout=DEADLINE)


def tally(results):
    counts = {}
    for result in results:
        counts[result] = counts.get(result, 0) + 1
    return "; ".join("%d x %s" % (count, result) for result, count in sorted(counts.items(), key=lambda x: -x[1]))


def outcome(got, end, want):
    if got == want:
        return "all bytes, then " + end
    if want.startswith(got):
        return "%s, then %s" % ("NO bytes" if not got else "SHORT", end)
    return "WRONG bytes, then " + end


def trial_intact(relay):
    """Requests with the FIN right behind them, echoed"""
    results = []
    with Backends(echo):
        for index in range(60):
            want = (BLOCK * 9)[: 8_000_000 if index == 0 else 1 + index * 997]
            client = connect()
            sender = threading.Thread(target=lambda: (client.sendall(want), client.shutdown(socket.SHUT_WR)))
            sender.start()
            results.append(outcome(*receive_all(client), want))
            sender.join()
            client.close()
    return tally(results)


def trial_reset(relay, pause=0.0, size=100_000):
    """The backend sends 100 KB, sees them acknowledged, and resets"""
    want = BLOCK[:size]

    def serve(connection):
        connection.recv(64)
        connection.sendall(want)
        until = time.time() + 3
        while unacknowledged(connection) and time.time() < until:
            time.sleep(0.0005)
        reset(connection)

    results = []
    with Backends(serve):
        for _ in range(20):
            client = connect()
            client.sendall(b"?")
            time.sleep(pause)
            results.append(outcome(*receive_all(client), want))
            client.close()
    return tally(results)


def trial_reset_slow(relay):
    """The same with 900 KB, and a client that begins to read after 0.3 s"""
    return trial_reset(relay, 0.3, 900_000)


def trial_late_answer(relay):
    """The client shuts down, the backend answers 1 MB after 0.3 s"""
    want = BLOCK[:1_000_000]

    def serve(connection):
        while connection.recv(1 << 16):
            pass
        time.sleep(0.3)
        connection.sendall(want)

    results = []
    with Backends(serve):
        for _ in range(5):
            client = connect()
            client.sendall(b"?")
            time.sleep(0.05)
            client.shutdown(socket.SHUT_WR)
            results.append(outcome(*receive_all(client), want))
            client.close()
    return tally(results)


def trial_late_upload(relay):
    """The backend shuts down first, the client sends 1 MB after 0.3 s"""
    want, results = BLOCK[:1_000_000], []

    def serve(connection):
        connection.recv(1)
        connection.shutdown(socket.SHUT_WR)
        results.append(outcome(*receive_all(connection), want))

    with Backends(serve):
        for index in range(5):
            client = connect()
            client.sendall(b"?")
            got, end = receive_all(client)
            time.sleep(0.3)
            try:
                client.sendall(want)
                client.shutdown(socket.SHUT_WR)
            except OSError as error:
                end = str(error)
            until = time.time() + DEADLINE + 1
            while len(results) <= index and time.time() < until:
                time.sleep(0.01)
            client.close()
            if (got, end) != (b"", "end"):
                results[-1] += " (the client saw: %s)" % end
    return tally(results)


def memory(relay):
    status = dict(line.split(":", 1) for line in open("/proc/%d/status" % relay.process.pid))
    system = dict(line.split(":", 1) for line in open("/proc/meminfo"))
    tcp = open("/proc/net/sockstat").read().split("mem ")[1].split()[0]
    kilobytes = lambda text: int(text.split()[0]) / 1024
    return kilobytes(status["VmRSS"]), kilobytes(system["MemAvailable"]), int(tcp) * 4096 / 2**20


def trial_slow_reader(relay):
    """A client that doesn't read; the backend sends as much as is taken, 1 GB and 5 s at most"""
    sent, stop = [0], threading.Event()

    def serve(connection):
        connection.recv(1)
        connection.setblocking(False)
        until = time.time() + 5
        while sent[0] < 1 << 30 and time.time() < until:
            if select.select([], [connection], [], 0.5)[1]:
                try:
                    sent[0] += connection.send(BLOCK[: 1 << 18])
                except BlockingIOError:
                    pass
        stop.wait(20)

    with Backends(serve):
        client = connect()
        before = memory(relay)
        client.sendall(b"?")
        last, quiet, begun = -1, 0, time.time()
        while quiet < 15 and time.time() - begun < 7:
            quiet, last = (quiet + 1 if sent[0] == last else 0), sent[0]
            time.sleep(0.1)
        after = memory(relay)
        begun_close = time.time()
        reset(client)
        stop.set()
        time.sleep(1.0)
        again = memory(relay)
    return (
        "backend got rid of %.1f MB in %.1f s; relay's resident memory %+.1f MB, the machine's free memory %+.0f MB, "
        "counted as TCP's %+.1f MB; a second after the client's reset: free memory %+.0f MB"
        % (sent[0] / 1e6, begun_close - begun, after[0] - before[0], after[1] - before[1], after[2] - before[2], again[1] - before[1])
    )


def trial_neighbours(relay):
    """Echoes of one client beside so many that don't read their downloads"""
    def serve(connection):
        if connection.recv(1, socket.MSG_PEEK) == b"d":
            connection.settimeout(8)
            until, total = time.time() + 8, 0
            while time.time() < until and total < 8_000_000:
                total += connection.send(BLOCK[: 1 << 18])
            time.sleep(8)
        else:
            echo(connection)

    results = []
    with Backends(serve):
        for readers in (0, 4, 16, 64, 200):
            slow = []
            for _ in range(readers):
                client = connect()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
                client.sendall(b"d")
                slow.append(client)
            time.sleep(0.5)
            client, times, failed = connect(), [], 0
            client.settimeout(2)
            for _ in range(50):
                begun = time.time()
                try:
                    client.sendall(b"e" * 64)
                    got = 0
                    while got < 64:
                        part = client.recv(64)
                        if not part:
                            raise OSError("end")
                        got += len(part)
                    times.append(time.time() - begun)
                except OSError:
                    failed += 1
                    break
            for sock in slow + [client]:
                reset(sock)
            worst = "%.1f ms" % (max(times) * 1e3) if times else "-"
            results.append("%d: %s" % (readers, "STUCK for 2 s" if failed else "worst of 50 " + worst))
            time.sleep(0.3)
    return "; ".join(results)


def trial_client_reset(relay):
    """The client resets; how soon does the backend know?"""
    seen = []

    def serve(connection):
        connection.recv(1)
        connection.sendall(b"!")
        _, end = receive_all(connection)
        seen.append((time.time(), end))

    results = []
    with Backends(serve):
        for index in range(5):
            client = connect()
            client.sendall(b"?")
            client.recv(1)
            begun = time.time()
            reset(client)
            while len(seen) <= index and time.time() < begun + DEADLINE + 1:
                time.sleep(0.001)
            when, end = seen[index] if len(seen) > index else (time.time(), "nothing")
            results.append("%s within %d ms" % (end, 100 if when - begun < 0.1 else 1000 * (when - begun) // 100 * 100 + 100))
    return tally(results)


def trial_server_first(relay):
    """The backend speaks first, at once, 300 small pieces; the client answers while they come"""
    want = b"".join(b"%06d\n" % number for number in range(300))

    def serve(connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(300):
            connection.sendall(b"%06d\n" % number)
        connection.shutdown(socket.SHUT_WR)
        receive_all(connection)

    results = []
    with Backends(serve):
        for _ in range(40):
            client = connect()
            client.sendall(b"hello")
            results.append(outcome(*receive_all(client), want))
            client.close()
    return tally(results)


def trial_rights(relay):
    """A user who is not root; root without its capabilities but CAP_BPF and CAP_NET_ADMIN; a filter that forbids io_uring"""
    results = []
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    both = nobody + ["--inh-caps", "+bpf,+net_admin", "--ambient-caps", "+bpf,+net_admin"]
    one = nobody + ["--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"]
    tries = [("nobody", nobody, None), ("nobody + net_admin", one, None), ("nobody + bpf, net_admin", both, None),
             ("filter", [], forbid_io_uring)]
    for name, prefix, before in tries:
        relay.stop()
        words = relay.start(prefix, before)
        if words:
            results.append("%s: does not start (%s)" % (name, words[-80:]))
            continue
        with Backends(echo):
            client = connect()
            try:
                client.sendall(b"x" * 64)
                results.append("%s: %s" % (name, "works" if client.recv(64) else "no answer"))
            except OSError as error:
                results.append("%s: %s" % (name, error))
            client.close()
    relay.stop()
    relay.start()
    return "; ".join(results)


def trial_kill(relay):
    """Killed with 20 connections open: how long is its port still taken?"""
    with Backends(echo):
        clients = [connect() for _ in range(20)]
        for client in clients:
            client.sendall(b"x")
            client.recv(1)
        relay.stop()
        for client in clients:
            client.close()
    return "%.0f ms" % (relay.port_free_after * 1e3)


def forbid_io_uring():
    """io_uring_setup answers EPERM, as under the default profile of current container engines."""
    load, equal, give = 0x20, 0x15, 0x06
    code = [(load, 0, 0, 0), (equal, 0, 1, 425), (give, 0, 0, 0x00050000 | 1), (give, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    header = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


class Relay:
    def __init__(self, name, command):
        self.name, self.command, self.process = name, command, None

    def start(self, prefix=(), before=None):
        """Nothing, or why it doesn't run."""
        self.output = tempfile.TemporaryFile()
        environment = dict(os.environ, RUST_BACKTRACE="0", RUST_LIB_BACKTRACE="0")
        self.process = subprocess.Popen(
            [*prefix, *self.command], stdout=self.output, stderr=subprocess.STDOUT, preexec_fn=before, env=environment
        )
        until = time.time() + 5
        while time.time() < until and self.process.poll() is None:
            try:
                connect().close()
                time.sleep(0.2)
                return None
            except OSError:
                time.sleep(0.02)
        return self.last_words()

    def last_words(self):
        self.output.seek(0)
        words = self.output.read().decode(errors="replace").split("Stack")[0].split()
        return " ".join(words)[-300:] or "no words"

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process, begun = None, time.time()
            while time.time() < begun + DEADLINE:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    try:
                        probe.bind(("127.0.0.1", PORT))
                        break
                    except OSError:
                        time.sleep(0.002)
            self.port_free_after = time.time() - begun


def relays(options, directory):
    beyond = os.path.join(HERE, "target/release/beyond")
    common = ["--listen", "127.0.0.1:%d" % PORT] + [word for host, port in BACKENDS for word in ("--backend", "%s:%d" % (host, port))]
    yield Relay("epoll", [beyond, "epoll", *common])
    yield Relay("uring", [beyond, "uring", *common])
    yield Relay("uring-single", [beyond, "uring", "--single-shot", *common])
    yield Relay("sockmap", [beyond, "sockmap", *common])
    yield Relay("sockmap-naive", [beyond, "sockmap", "--ending", "naive", *common])
    if options.tidegate:
        file = os.path.join(directory, "lb.toml")
        with open(file, "w") as out:
            out.write('[listeners.x]\nbind = "127.0.0.1:%d"\npool = "x"\n[pools.x]\nbackends = [%s]\n[pools.x.health]\nprobe = "none"\n'
                      % (PORT, ", ".join('"%s:%d"' % backend for backend in BACKENDS)))
        yield Relay("tidegate", [options.tidegate, "run", "--config", file])
    if shutil.which("haproxy"):
        file = os.path.join(directory, "haproxy.cfg")
        with open(file, "w") as out:
            out.write("defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\nlisten x\n bind 127.0.0.1:%d\n%s"
                      % (PORT, "".join(" server b%d %s:%d\n" % (port, host, port) for host, port in BACKENDS)))
        yield Relay("haproxy", ["haproxy", "-db", "-f", file])


def main():
    trials = {name[6:]: value for name, value in globals().items() if name.startswith("trial_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tidegate", help="the tidegate to try beside the prototypes")
    parser.add_argument("--only", type=lambda text: text.split(","), help="these relays")
    parser.add_argument("--trials", type=lambda text: text.split(","), default=list(trials), help="these trials")
    options = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)  # for the user who is not root
        todo = [relay for relay in relays(options, directory) if not options.only or relay.name in options.only]
        for trial in options.trials:
            print("\n%s: %s" % (trial, trials[trial].__doc__))
            for relay in todo:
                words = relay.start()
                try:
                    line = words and "does not start (%s)" % words or trials[trial](relay)
                except OSError as error:
                    line = "the trial broke off: %s" % error
                try:
                    if not words and relay.process and relay.process.poll() is not None:
                        line += "; THE RELAY ENDED: %s" % relay.last_words()
                finally:
                    relay.stop()
                print("  %-14s %s" % (relay.name, line), flush=True)


if __name__ == "__main__":
    main()
