//! The bytes of a packet: a byte for its kind, then foca's, or what introduces a node to an address it knows no name for.

use std::net::SocketAddr;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Incarnation, Member, Message, State};
use serde::{Deserialize, Serialize};
use zdap_proto::name::{ClusterId, NodeName};

use super::peer::Peer;
use super::shared::Shared;

/// The most that a QUIC datagram takes on a path with an MTU of 1200 bytes: 1200 less 1 + 8 + 4 + 16 for the header of
/// the packet and its seal, less 9 for the frame.
pub const MAX_PACKET_BYTES: usize = 1162;

/// What foca may fill.
pub(super) const MAX_SWIM_BYTES: usize = MAX_PACKET_BYTES - 1;

/// What a packet is.
pub(super) enum Packet<'a> {
    /// For foca.
    Swim(&'a [u8]),
    /// Not.
    Greeting(Greeting),
}

/// How a node that knows an address and nothing else finds out who is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Greeting {
    /// Of which cluster.
    pub(super) cluster: ClusterId,
    /// By whom.
    pub(super) from: Peer,
    /// What it wants or says.
    pub(super) kind: GreetingKind,
}

/// What a greeting is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum GreetingKind {
    /// Who is there?
    Knock,
    /// I am; and this is what I know of you. A node hears from it that it was given up, or that another goes by its name.
    Here {
        /// Nothing if the name is new.
        you: Option<Member<Peer>>,
    },
    /// You did not answer me, and have a few seconds to.
    Suspected {
        /// The life that is.
        you: Peer,
        /// What it is to go above.
        incarnation: Incarnation,
    },
    /// Somebody thinks that you are down. None but you can say otherwise, under a higher epoch.
    GivenUp {
        /// The life that is.
        you: Peer,
    },
}

/// What a packet's kind is told by.
const SWIM: u8 = 0;
const GREETING: u8 = 1;

impl Packet<'_> {
    /// Reads a packet; `None` if it is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Packet<'_>> {
        match bytes.split_first()? {
            _ if bytes.len() > MAX_PACKET_BYTES => None,
            (&SWIM, rest) => Some(Packet::Swim(rest)),
            (&GREETING, rest) => match postcard::take_from_bytes(rest) {
                Ok((greeting, [])) => Some(Packet::Greeting(greeting)),
                Ok(_) | Err(_) => None,
            },
            _ => None,
        }
    }

    /// Returns who sent it, `from` being the name in the certificate; `None` if that cannot be read.
    pub(super) fn sender(&self, from: &NodeName) -> Option<Peer> {
        match self {
            // Who it is from comes first in the header.
            Packet::Swim(bytes) => {
                let (life, _) = postcard::take_from_bytes::<Life>(bytes).ok()?;
                Peer::new(from.clone(), life.address, life.epoch).ok()
            }
            Packet::Greeting(greeting) => Some(greeting.from.clone()),
        }
    }
}

/// Returns the packet that holds what foca sends.
pub(super) fn swim(bytes: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(1 + bytes.len());
    packet.push(SWIM);
    packet.extend_from_slice(bytes);
    packet
}

/// Returns the packet that holds a greeting.
pub(super) fn greeting(greeting: &Greeting) -> Vec<u8> {
    postcard::to_extend(greeting, vec![GREETING]).expect("plain data into a vector")
}

/// Writes and reads what foca says.
///
/// The sender's name is not written, as it is in its certificate. The receiver is written as a [`Peer::label`] and not as a whole: it only has to recognise itself, and packets of
/// another cluster never do. What comes in about this node's own name is overheard, and where it would outrank this node
/// foca is not told: foca would declare that life down, and who is right is not for foca to say.
pub(super) struct PacketCodec {
    pub(super) cluster: ClusterId,
    pub(super) shared: Shared,
}

/// What foca cannot make sense of.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    /// Not the bytes it should be, or no room for them.
    #[error(transparent)]
    Bytes(#[from] postcard::Error),
    /// No room left in the packet.
    #[error("the packet is full")]
    Full,
    /// From no node that could be answered.
    #[error("no sender in it")]
    Nobody,
    /// For another node, or of another cluster.
    #[error("the packet is for another node, or from another cluster")]
    Astray,
    /// That this node is given up, which it knows. foca answers in kind whom it has given up itself: two that have given up
    /// each other would go on for ever.
    #[error("the packet says what is known")]
    OldNews,
}

/// A peer but for its name.
#[derive(Serialize, Deserialize)]
struct Life {
    address: SocketAddr,
    epoch: u64,
}

#[derive(Serialize)]
struct HeaderOut<'a> {
    src: Life,
    incarnation: Incarnation,
    to: [u8; 6],
    message: &'a Message<Peer>,
}

#[derive(Deserialize)]
struct HeaderIn {
    src: Life,
    incarnation: Incarnation,
    to: [u8; 6],
    message: Message<Peer>,
}

impl Codec<Peer> for PacketCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Peer>, buffer: impl BufMut) -> Result<(), CodecError> {
        let header = HeaderOut {
            src: Life {
                address: header.src.address,
                epoch: header.src.epoch,
            },
            incarnation: header.src_incarnation,
            to: header.dst.label(&self.cluster),
            message: &header.message,
        };
        put(&header, buffer)
    }

    fn decode_header(&mut self, buffer: impl Buf) -> Result<Header<Peer>, CodecError> {
        let header: HeaderIn = take(buffer)?;
        let mut overheard = self.shared.lock();
        let src = overheard.sender.clone();
        let src = src.and_then(|name| Peer::new(name, header.src.address, header.src.epoch).ok());
        let src = src.ok_or(CodecError::Nobody)?;
        let me = &overheard.me;
        let label = me.label(&self.cluster);
        if header.to[..3] != label[..3] {
            return Err(CodecError::Astray);
        }
        let mut dst = me.clone();
        if header.to != label {
            // Another life of this node: foca lets such a packet in only if it announces a member.
            dst.epoch = match me.epoch {
                0 => 1,
                _ => 0,
            };
        }
        overheard.sight(&src, State::Alive, true);
        overheard.mentioned.push(src.key);
        if header.message == Message::TurnUndead && overheard.is_given_up {
            return Err(CodecError::OldNews);
        }
        Ok(Header {
            src,
            src_incarnation: header.incarnation,
            dst,
            message: header.message,
        })
    }

    fn encode_member(&mut self, member: &Member<Peer>, buffer: impl BufMut) -> Result<(), CodecError> {
        put(member, buffer)
    }

    fn decode_member(&mut self, buffer: impl Buf) -> Result<Member<Peer>, CodecError> {
        let member: Member<Peer> = take(buffer)?;
        let mut overheard = self.shared.lock();
        overheard.mentioned.push(member.id().key);
        Ok(match overheard.sight(member.id(), member.state(), false) {
            true => Member::alive(overheard.me.clone()),
            false => member,
        })
    }
}

fn put<T: Serialize>(value: &T, mut buffer: impl BufMut) -> Result<(), CodecError> {
    let bytes = postcard::to_stdvec(value)?;
    if bytes.len() > buffer.remaining_mut() {
        return Err(CodecError::Full);
    }
    buffer.put_slice(&bytes);
    Ok(())
}

/// foca's buffers are in one piece.
fn take<T: for<'de> Deserialize<'de>>(mut buffer: impl Buf) -> Result<T, CodecError> {
    let (value, rest) = postcard::take_from_bytes(buffer.chunk())?;
    let rest = rest.len();
    buffer.advance(buffer.remaining() - rest);
    Ok(value)
}
