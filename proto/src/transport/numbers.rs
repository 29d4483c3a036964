//! The numbers of QUIC connections, with the reason for each.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

use super::Purpose;

/// The numbers of a connection that this side opens.
pub(crate) fn opened(purpose: Purpose) -> TransportConfig {
    let mut transport = common();
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        // Nodes open no streams to clients, but to each other by whichever connection there is.
        .max_concurrent_bidi_streams(match purpose {
            Purpose::Gossip => streams(purpose),
            Purpose::Control | Purpose::Tunnel | Purpose::Enrol => VarInt::from_u32(0),
        })
        .receive_window(match purpose {
            Purpose::Tunnel => OPENED_TUNNEL_WINDOW,
            Purpose::Control | Purpose::Enrol | Purpose::Gossip => STREAM_WINDOW,
        });
    if purpose == Purpose::Gossip {
        transport
            .keep_alive_interval(Some(GOSSIP_KEEP_ALIVE))
            .max_idle_timeout(Some(IdleTimeout::from(GOSSIP_IDLE)))
            .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
            // A datagram of 1162 bytes fits from the first packet on and for ever, and none is larger.
            .initial_mtu(MTU)
            .min_mtu(MTU)
            .mtu_discovery_config(None);
    }
    transport
}

/// The numbers of a connection that this side accepts, as long as nobody knows who opens it; [`super::handshake`] raises them.
pub(super) fn accepted() -> TransportConfig {
    let mut transport = common();
    transport
        // The shorter of the two sides' counts, and so the opener's.
        .max_idle_timeout(Some(IdleTimeout::from(GOSSIP_IDLE)))
        .max_concurrent_bidi_streams(BEFORE_HANDSHAKE_STREAMS)
        // What a connection is for shows only when this has been said. Datagrams of others than nodes are never read.
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER))
        .receive_window(BEFORE_HANDSHAKE_WINDOW);
    transport
}

fn common() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(IDLE)))
        .stream_receive_window(STREAM_WINDOW)
        .send_window(SEND_WINDOW)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .initial_rtt(INITIAL_RTT)
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(GOSSIP_SEND_BUFFER)
        // Ninety times the default's throughput where one packet in a hundred is lost, and no less anywhere.
        .congestion_controller_factory(Arc::new(quinn::congestion::BbrConfig::default()));
    transport
}

/// Streams that the opener of such a connection may have open at once.
pub(super) fn streams(purpose: Purpose) -> VarInt {
    match purpose {
        Purpose::Control => VarInt::from_u32(64), // a person, or a script with a few people's worth of requests
        Purpose::Tunnel => VarInt::from_u32(4096), // each is a database connection: more than any pool opens
        Purpose::Enrol => BEFORE_HANDSHAKE_STREAMS,
        Purpose::Gossip => VarInt::from_u32(32), // a comparison, and catalogs of others that only this node has
    }
}

/// Bytes that the acceptor of such a connection holds for all its streams together.
pub(super) fn window(purpose: Purpose) -> VarInt {
    match purpose {
        Purpose::Control | Purpose::Gossip => VarInt::from_u32(1024 * 1024), // requests are small
        Purpose::Tunnel => ACCEPTED_TUNNEL_WINDOW,
        Purpose::Enrol => BEFORE_HANDSHAKE_WINDOW,
    }
}

/// A laptop that changes its address is silent for as long at most: the node answers to the old one until the laptop
/// speaks. Also under what home routers keep a UDP mapping for.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Nodes have no home router before them, and every node of a cluster has such a connection to every other, over which it
/// says something by itself every N x 0.4 s: as rarely as leaves time within [`GOSSIP_IDLE`] for a second one.
const GOSSIP_KEEP_ALIVE: Duration = Duration::from_secs(45);
/// Whether a node is there is found out by the gossip, which then gives up its connection; and what firewalls between sites
/// keep a UDP flow for at least.
const GOSSIP_IDLE: VarInt = VarInt::from_u32(120_000);
/// What cannot be sent within a few packets' time is old news.
const GOSSIP_SEND_BUFFER: usize = 32 * 1024;
/// What every path of the internet takes (RFC 9000, section 14).
const MTU: u16 = 1200;
/// A burst of news from one node; the oldest go when it is full.
const DATAGRAM_BUFFER: usize = 64 * 1024;
/// A first packet that is lost is sent again after three of these. A container's first packet often is, while its bridge
/// learns where it is; the default of 333 ms would make each start of a relay a second longer. Paths slower than 300 ms
/// cost one spurious retransmission.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Six keep-alives: long enough to change from one network to another, short enough to free what a dead peer holds.
const IDLE: VarInt = VarInt::from_u32(30_000);
/// Fills 3 Gbit/s at 20 ms.
const STREAM_WINDOW: VarInt = VarInt::from_u32(8 * 1024 * 1024);
/// Four streams' worth: BBR on a long path needs that much on its way.
const SEND_WINDOW: u64 = 32 * 1024 * 1024;
/// Sixty-four results that nobody reads do not stop the others. It is the relay's own memory.
const OPENED_TUNNEL_WINDOW: VarInt = VarInt::from_u32(512 * 1024 * 1024);
/// Eight uploads that their databases do not read. It is the node's memory, and others than it decide when it is used.
const ACCEPTED_TUNNEL_WINDOW: VarInt = VarInt::from_u32(64 * 1024 * 1024);
/// What somebody unknown can make this process hold.
const BEFORE_HANDSHAKE_WINDOW: VarInt = VarInt::from_u32(64 * 1024);
const BEFORE_HANDSHAKE_STREAMS: VarInt = VarInt::from_u32(8);
