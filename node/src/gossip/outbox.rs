//! What foca does in one call.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use foca::{Notification, Runtime, Timer};
use zdap_proto::name::NodeName;

use super::packet;
use super::peer::Peer;

/// What foca wants done, until the call is over.
pub(super) struct Outbox {
    me: Arc<NodeName>,
    pub(super) packets: Vec<(SocketAddr, Vec<u8>)>,
    pub(super) timers: Vec<(Duration, Timer<Peer>)>,
    pub(super) notices: Vec<Notice>,
    /// The keys of members that something has happened to.
    pub(super) mentioned: Vec<u128>,
}

/// What foca says of this node.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// The first member is known, or the first under this epoch.
    Connected,
    /// No member is left.
    Alone,
    /// Others think this node is down.
    GivenUp,
}

impl Outbox {
    pub(super) fn of(me: &Peer) -> Self {
        Self {
            me: Arc::clone(&me.name),
            packets: Vec::new(),
            timers: Vec::new(),
            notices: Vec::new(),
            mentioned: Vec::new(),
        }
    }
}

impl Runtime<Peer> for Outbox {
    fn notify(&mut self, notification: Notification<'_, Peer>) {
        match notification {
            Notification::MemberUp(peer) | Notification::MemberDown(peer) | Notification::Rename(_, peer) => {
                self.mentioned.push(peer.key);
            }
            Notification::Active => self.notices.push(Notice::Connected),
            Notification::Idle => self.notices.push(Notice::Alone),
            Notification::Defunct => self.notices.push(Notice::GivenUp),
            // Only sent to those whose identity renews itself.
            Notification::Rejoin(_) => {}
        }
    }

    fn send_to(&mut self, to: Peer, data: &[u8]) {
        // An earlier life of this node is a member that is down, and foca now and then asks those.
        if to.name != self.me {
            self.packets.push((to.address, packet::swim(data)));
        }
    }

    fn submit_after(&mut self, timer: Timer<Peer>, after: Duration) {
        if let Timer::ChangeSuspectToDown { member_id, .. } = &timer {
            self.mentioned.push(member_id.key);
        }
        self.timers.push((after, timer));
    }
}
