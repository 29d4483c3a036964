//! What `zdapd`, `zdap` and `zdap-proxyd` say to each other: the protocol on one page.
//!
//! Everything travels over QUIC with mutual TLS of the cluster's own CA ([`identity`], [`transport`]). What a connection
//! is for is its ALPN, and each ALPN has one shape of stream:
//!
//! | ALPN             | opened by           | each bidirectional stream carries                                         |
//! |------------------|---------------------|---------------------------------------------------------------------------|
//! | `zdap/1`         | users, admins, nodes | one [`message::Call`]; back: any number of [`message::Reply::Progress`], then one last reply |
//! | `zdap-tunnel/1`  | relays, users, nodes | [`message::TunnelHello`]; back: [`message::TunnelReply`]; then the raw bytes of one database connection, spliced with half-close ([`splice`]) |
//! | `zdap-gossip/1`  | nodes               | in datagrams the packets of the cluster's membership; on streams what one node asks another of the cluster. Both are defined in `zdap-node` |
//! | `zdap-enrol/1`   | anyone with a token | [`message::EnrolRequest`]; back: [`message::EnrolReply`]. The only ALPN without a client certificate |
//!
//! Messages are postcard in length-prefixed frames ([`frame`]) with a size cap that the reader sets. A relay image follows
//! its header frame as raw bytes until the end of the stream.
//!
//! **Version rule.** The number in the ALPN is the version. From the first release on, enum variants are only ever appended
//! within a version, and structs never change: postcard is positional. `tests/golden.rs` holds the bytes of every message, so a change that
//! would break a peer breaks the build first.
//!
//! # Map
//! - [`name`]: names parsed once, trusted after
//! - [`message`]: requests and replies, plain data
//! - [`digest`]: what every node tells every other of itself, in a packet
//! - [`refusal`]: the only error that crosses the wire
//! - [`frame`]: length-prefixed postcard with a size cap
//! - [`control`]: one request, its progress, its answer
//! - [`identity`]: the cluster CA, certificates, who a peer is
//! - [`keyfile`]: small files of secrets that survive a crash
//! - [`token`]: the invite, good once
//! - [`transport`]: QUIC endpoints with mutual TLS, and their numbers
//! - [`connect`]: the way to a node, or the reason why not
//! - [`renewal`]: a fresh certificate before the old one ends
//! - [`splice`]: a TCP (or Unix) connection and a QUIC stream, joined
//! - [`tunnel`]: the client half of the tunnel: a local listener whose connections reach one clone

pub mod connect;
pub mod control;
pub mod digest;
pub mod frame;
pub mod identity;
pub mod keyfile;
pub mod message;
pub mod name;
mod postgres;
pub mod refusal;
pub mod renewal;
pub mod splice;
pub mod token;
pub mod transport;
pub mod tunnel;

/// Control requests of users, admins and nodes.
pub const ALPN_CONTROL: &[u8] = b"zdap/1";
/// Database connections to one clone.
pub const ALPN_TUNNEL: &[u8] = b"zdap-tunnel/1";
/// What nodes tell each other of the cluster.
pub const ALPN_GOSSIP: &[u8] = b"zdap-gossip/1";
/// A token for a certificate; the peer has none yet.
pub const ALPN_ENROL: &[u8] = b"zdap-enrol/1";
