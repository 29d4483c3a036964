//! A network in memory for quinn: packets wait in one queue, and chance, which has a seed, decides what becomes of each.
//!
//! Nothing here reads a clock but tokio's, so with that paused the same seed gives the same packets at the same times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use zdap_proto::transport::Socket;

/// What the network does to packets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Weather {
    /// How long a packet is under way, in milliseconds.
    pub(crate) latency: (u64, u64),
    /// The share of packets that are lost.
    pub(crate) loss: f64,
    /// The share that arrives twice.
    pub(crate) doubled: f64,
    /// The share that is late, by up to 50 ms, so that others overtake it.
    pub(crate) late: f64,
}

impl Weather {
    /// Every packet arrives, once, in order.
    pub(crate) const FAIR: Self = Self {
        latency: (1, 1),
        loss: 0.0,
        doubled: 0.0,
        late: 0.0,
    };
}

/// A network. Clones of the value are the same one.
#[derive(Clone)]
pub(crate) struct Network(Arc<Shared>);

struct Shared {
    wires: Mutex<Wires>,
    /// Something is due earlier than before.
    sooner: Notify,
}

struct Wires {
    rng: StdRng,
    began: Instant,
    weather: Weather,
    sockets: BTreeMap<SocketAddr, Arc<MemorySocket>>,
    /// Ways that no packet takes, each one-way.
    cut: BTreeSet<(IpAddr, IpAddr)>,
    /// Hosts that neither send nor receive until then; what is sent waits.
    stalled: BTreeMap<IpAddr, Instant>,
    queue: BinaryHeap<Reverse<Packet>>,
    sent: u64,
    trace: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    at: Instant,
    number: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl Network {
    /// Makes a network in which it is fair weather, and starts to deliver. Inside a Tokio runtime.
    pub(crate) fn new(seed: u64) -> Self {
        let wires = Wires {
            rng: StdRng::seed_from_u64(seed),
            began: Instant::now(),
            weather: Weather::FAIR,
            sockets: BTreeMap::new(),
            cut: BTreeSet::new(),
            stalled: BTreeMap::new(),
            queue: BinaryHeap::new(),
            sent: 0,
            trace: 0xcbf2_9ce4_8422_2325,
        };
        let network = Self(Arc::new(Shared {
            wires: Mutex::new(wires),
            sooner: Notify::new(),
        }));
        tokio::spawn(network.clone().deliver());
        network
    }

    /// Opens a socket. One that was there is dead from now on, as if its process had been killed.
    pub(crate) fn bind(&self, address: SocketAddr) -> Socket {
        let mut wires = self.wires();
        let socket = Arc::new(MemorySocket {
            network: self.clone(),
            address,
            inbox: Mutex::default(),
        });
        if let Some(old) = wires.sockets.insert(address, Arc::clone(&socket)) {
            old.die();
        }
        let seed = wires.rng.random();
        Socket::Simulated { socket, seed }
    }

    /// Kills the socket at an address, as the end of its process does: nobody is told.
    pub(crate) fn kill(&self, address: SocketAddr) {
        if let Some(socket) = self.wires().sockets.remove(&address) {
            socket.die();
        }
    }

    /// Ends it, and what it keeps alive: its sockets know it as it knows them.
    pub(crate) fn end(&self) {
        let sockets = std::mem::take(&mut self.wires().sockets);
        drop(sockets);
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.wires().weather = weather;
    }

    /// Lets nothing through from one host to another; what is under way arrives.
    pub(crate) fn cut(&self, from: IpAddr, to: IpAddr) {
        self.wires().cut.insert((from, to));
    }

    /// Ends a cut.
    pub(crate) fn mend(&self, from: IpAddr, to: IpAddr) {
        self.wires().cut.remove(&(from, to));
    }

    /// Ends all cuts.
    pub(crate) fn heal(&self) {
        self.wires().cut.clear();
    }

    /// Keeps back all that a host sends, and all that is sent to it, until `until`.
    pub(crate) fn stall(&self, host: IpAddr, until: Instant) {
        self.wires().stalled.insert(host, until);
    }

    /// Returns what tells two runs apart: a hash of when which packet of what length was sent, and how many there were.
    pub(crate) fn trace(&self) -> (u64, u64) {
        let wires = self.wires();
        (wires.trace, wires.sent)
    }

    async fn deliver(self) {
        loop {
            let sooner = self.0.sooner.notified();
            let next = {
                let mut wires = self.wires();
                wires.deliver_due();
                wires.queue.peek().map(|Reverse(packet)| packet.at)
            };
            match next {
                Some(at) => tokio::select! {
                    biased;
                    () = sleep_until(at) => {}
                    () = sooner => {}
                },
                None => sooner.await,
            }
        }
    }

    fn wires(&self) -> MutexGuard<'_, Wires> {
        self.0.wires.lock().unwrap()
    }
}

impl Wires {
    /// Takes a packet, and returns whether it is the next to arrive.
    fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> bool {
        let now = Instant::now();
        self.sent += 1;
        self.note((now - self.began).as_micros(), from, to, bytes.len());
        if self.cut.contains(&(from.ip(), to.ip())) || self.happens(self.weather.loss) {
            return false;
        }
        let next = self.queue.peek().map(|Reverse(packet)| packet.at);
        let copies = 1 + usize::from(self.happens(self.weather.doubled));
        for _ in 0..copies {
            let (shortest, longest) = self.weather.latency;
            let mut latency = self.rng.random_range(shortest..=longest);
            if self.happens(self.weather.late) {
                latency += self.rng.random_range(1..=50);
            }
            let stalled = [from.ip(), to.ip()].map(|host| self.stalled.get(&host).copied());
            let leaves = stalled.into_iter().flatten().fold(now, Instant::max);
            self.sent += 1;
            let packet = Packet {
                at: leaves + Duration::from_millis(latency),
                number: self.sent,
                from,
                to,
                bytes: bytes.to_vec(),
            };
            self.queue.push(Reverse(packet));
        }
        next != self.queue.peek().map(|Reverse(packet)| packet.at)
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while let Some(Reverse(first)) = self.queue.peek()
            && first.at <= now
        {
            let Some(Reverse(mut packet)) = self.queue.pop() else {
                break;
            };
            match self.stalled.get(&packet.to.ip()).filter(|until| **until > now) {
                Some(until) => {
                    packet.at = *until;
                    self.queue.push(Reverse(packet));
                }
                None => {
                    if let Some(socket) = self.sockets.get(&packet.to) {
                        socket.receive(packet);
                    }
                }
            }
        }
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share)
    }

    fn note(&mut self, microseconds: u128, from: SocketAddr, to: SocketAddr, length: usize) {
        let ends = [from, to].map(|end| format!("{end}"));
        let parts = [microseconds.to_le_bytes().to_vec(), length.to_le_bytes().to_vec()]
            .into_iter()
            .chain(ends.map(String::into_bytes));
        for byte in parts.flatten() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// One end of the network.
struct MemorySocket {
    network: Network,
    address: SocketAddr,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    packets: VecDeque<Packet>,
    reader: Option<Waker>,
    is_dead: bool,
}

impl MemorySocket {
    fn receive(&self, packet: Packet) {
        let mut inbox = self.inbox();
        inbox.packets.push_back(packet);
        inbox.wake();
    }

    fn die(&self) {
        let mut inbox = self.inbox();
        inbox.is_dead = true;
        inbox.wake();
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap()
    }
}

impl Inbox {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl AsyncUdpSocket for MemorySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.inbox().is_dead {
            return Ok(());
        }
        let is_next = self
            .network
            .wires()
            .send(self.address, transmit.destination, transmit.contents);
        if is_next {
            self.network.0.sooner.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = self.inbox();
        if inbox.is_dead {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        let mut count = 0;
        while count < buffers.len().min(meta.len())
            && let Some(packet) = inbox.packets.pop_front()
        {
            let length = packet.bytes.len();
            buffers[count][..length].copy_from_slice(&packet.bytes);
            meta[count] = RecvMeta {
                addr: packet.from,
                len: length,
                stride: length,
                ..RecvMeta::default()
            };
            count += 1;
        }
        match count {
            0 => {
                inbox.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            count => Poll::Ready(Ok(count)),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl fmt::Debug for MemorySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemorySocket({})", self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
