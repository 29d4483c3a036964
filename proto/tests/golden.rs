//! The bytes of every message. A difference here is one that a peer of the same protocol version would not understand:
//! append variants, leave structs as they are, or raise the version in the ALPN.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::collections::BTreeMap;
use std::fmt::Debug;

use chrono::DateTime;
use data_encoding::HEXLOWER;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zdap_proto::frame;
use zdap_proto::identity::Subject;
use zdap_proto::message::{
    Account, Answer, Bottleneck, Call, Certificate, CloneState, CloneView, Considered, EnrolReply,
    EnrolRequest, Enrolled, FoundClone, Invited, NodeState, NodeView, Offered, Outcome, Progress, Reply,
    Request, ResourceView, SilentNode, SnapshotView, Sought, Stages, TokenText, TunnelHello, TunnelReply,
    Wanted,
};
use zdap_proto::name::{CloneId, RequestId, ResourceName, SnapshotTime};
use zdap_proto::refusal::{Refusal, RefusalKind};

/// One line a message: its name, and in hexadecimal the body of its frame.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn every_message_has_the_bytes_it_always_had() {
    let mut checked = Checked::default();
    for request in requests() {
        let call = Call {
            on_behalf_of: None,
            request,
        };
        checked.check(name_of_request(&call.request), &call);
    }
    for asker in [
        Subject::Node(parsed("db1")),
        Subject::User(ada()),
        Subject::Admin(ada()),
        Subject::Relay {
            owner: ada(),
            clone: clone(),
        },
    ] {
        let call = Call {
            on_behalf_of: Some(asker),
            request: Request::ListResources,
        };
        checked.check("Call", &call);
    }
    for answer in answers() {
        checked.check(name_of_answer(&answer), &Reply::Done(answer));
    }
    for kind in KINDS {
        checked.check(name_of_kind(kind), &Reply::Refused(refusal(kind)));
    }
    for reply in replies() {
        checked.check(name_of_reply(&reply), &reply);
    }
    for invited in [
        Invited::User {
            name: Some(ada()),
            admin: true,
        },
        Invited::User {
            name: None,
            admin: false,
        },
        Invited::Node,
    ] {
        checked.check("Invited", &invited);
    }
    for state in [CloneState::Creating, CloneState::Ready, CloneState::Destroying] {
        checked.check("CloneState", &state);
    }
    for on_behalf_of in [None, Some(Subject::User(ada()))] {
        let hello = TunnelHello {
            clone: clone(),
            on_behalf_of,
        };
        checked.check("TunnelHello", &hello);
    }
    for bottleneck in [
        Bottleneck::Pool,
        Bottleneck::Memory,
        Bottleneck::Processor,
        Bottleneck::Clones,
    ] {
        checked.check("Bottleneck", &bottleneck);
    }
    for outcome in [
        Outcome::Chosen,
        Outcome::Passed,
        Outcome::Refused("down".to_owned()),
    ] {
        checked.check("Outcome", &outcome);
    }
    for state in [
        NodeState::Alive,
        NodeState::Draining,
        NodeState::Suspect,
        NodeState::Down,
    ] {
        checked.check("NodeState", &state);
    }
    checked.check("TunnelReply", &TunnelReply::Open);
    checked.check(
        "TunnelReply",
        &TunnelReply::Refused(refusal(RefusalKind::Forbidden)),
    );
    for wanted in [
        Wanted::User { name: Some(ada()) },
        Wanted::User { name: None },
        Wanted::Node { name: parsed("db1") },
    ] {
        let request = EnrolRequest {
            secret: vec![7; 4],
            public_key: vec![8; 4],
            wanted,
        };
        checked.check("EnrolRequest", &request);
    }
    checked.check(
        "EnrolReply",
        &EnrolReply::Refused(refusal(RefusalKind::Forbidden)),
    );
    checked.check(
        "EnrolReply",
        &EnrolReply::Enrolled(Enrolled {
            cluster: parsed("k3v9x2mq0bcd"),
            certificate: certificate(),
            ca_key: Some(vec![3; 2]),
            nodes: vec!["10.0.0.1:43210".to_owned()],
        }),
    );
    assert_eq!(checked.lines(), GOLDEN, "left: the bytes now; right: golden.txt");
}

/// What was encoded, and decoded again.
#[derive(Default)]
struct Checked(BTreeMap<String, String>);

impl Checked {
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, message: &T) {
        let frame = frame::encode(message, frame::REPLY_CAP).unwrap();
        let body = &frame[4..];
        assert_eq!(frame[..4], u32::try_from(body.len()).unwrap().to_le_bytes());
        assert_eq!(frame::decode::<T>(body).unwrap(), *message);
        let mut line = name.to_owned();
        while self.0.contains_key(&line) {
            line.push('\'');
        }
        self.0.insert(line, HEXLOWER.encode(body));
    }

    fn lines(&self) -> String {
        self.0
            .iter()
            .map(|(name, hex)| format!("{name} {hex}\n"))
            .collect()
    }
}

// The matches name every variant, so that a new one has to be added to the lists too.

fn name_of_request(request: &Request) -> &'static str {
    match request {
        Request::ListResources => "Request::ListResources",
        Request::ListSnapshots { .. } => "Request::ListSnapshots",
        Request::ListClones { .. } => "Request::ListClones",
        Request::CreateSnapshot { .. } => "Request::CreateSnapshot",
        Request::CreateClone { .. } => "Request::CreateClone",
        Request::DestroyClone { .. } => "Request::DestroyClone",
        Request::DestroyAll { .. } => "Request::DestroyAll",
        Request::IssueRelay { .. } => "Request::IssueRelay",
        Request::Account { .. } => "Request::Account",
        Request::FetchRelay { .. } => "Request::FetchRelay",
        Request::IssueToken { .. } => "Request::IssueToken",
        Request::ListNodes => "Request::ListNodes",
        Request::Drain { .. } => "Request::Drain",
        Request::Revoke { .. } => "Request::Revoke",
        Request::Renew { .. } => "Request::Renew",
        Request::Find(_) => "Request::Find",
        Request::Offer { .. } => "Request::Offer",
        Request::Reserve { .. } => "Request::Reserve",
        Request::Forget { .. } => "Request::Forget",
        Request::TakeBack { .. } => "Request::TakeBack",
    }
}

fn requests() -> Vec<Request> {
    vec![
        Request::ListResources,
        Request::ListSnapshots { resource: None },
        Request::ListSnapshots {
            resource: Some(orders()),
        },
        Request::ListClones {
            resource: Some(orders()),
            all_owners: true,
        },
        Request::CreateSnapshot {
            resource: orders(),
            use_existing: true,
        },
        Request::CreateClone {
            resource: orders(),
            snapshot: Some(time()),
            node: Some(parsed("db1")),
            owner: Some(ada()),
            request_id: request_id(),
            attempt: 1,
        },
        Request::DestroyClone { clone: clone() },
        Request::DestroyAll { bases: true },
        Request::IssueRelay {
            clone: clone(),
            public_key: vec![1, 2, 3],
        },
        Request::Account { clone: clone() },
        Request::FetchRelay {
            architecture: "x86_64".to_owned(),
        },
        Request::IssueToken {
            invited: Invited::Node,
            ttl_seconds: 3600,
        },
        Request::ListNodes,
        Request::Drain { is_draining: true },
        Request::Revoke { user: ada() },
        Request::Renew {
            public_key: vec![1, 2, 3],
        },
        Request::Find(Sought::Clone(clone())),
        Request::Find(Sought::Made {
            owner: ada(),
            request_id: request_id(),
        }),
        Request::Offer {
            resource: orders(),
            snapshot: time(),
        },
        Request::Reserve {
            resource: orders(),
            snapshot: time(),
            request_id: request_id(),
            at_most: 0.5,
        },
        Request::Forget { node: parsed("db1") },
        Request::TakeBack {
            clone: clone(),
            attempt: 1,
        },
    ]
}

fn name_of_reply(reply: &Reply) -> &'static str {
    match reply {
        Reply::Progress(_) => "Reply::Progress",
        Reply::Done(_) => "Reply::Done",
        Reply::Refused(_) => "Reply::Refused",
    }
}

fn replies() -> Vec<Reply> {
    let progress = |bytes| {
        Reply::Progress(Progress {
            stage: "running creation script".to_owned(),
            elapsed_ms: 1500,
            bytes,
        })
    };
    vec![
        progress(Some(1 << 40)),
        progress(None),
        Reply::Refused(refusal(RefusalKind::NotFound).with_hint("`zdap list clones` shows yours")),
    ]
}

fn name_of_answer(answer: &Answer) -> &'static str {
    match answer {
        Answer::Resources(_) => "Answer::Resources",
        Answer::Snapshots(_) => "Answer::Snapshots",
        Answer::Clones { .. } => "Answer::Clones",
        Answer::Snapshot(_) => "Answer::Snapshot",
        Answer::Created { .. } => "Answer::Created",
        Answer::Destroyed => "Answer::Destroyed",
        Answer::DestroyedAll { .. } => "Answer::DestroyedAll",
        Answer::Certificate(_) => "Answer::Certificate",
        Answer::Account(_) => "Answer::Account",
        Answer::Relay { .. } => "Answer::Relay",
        Answer::Token(_) => "Answer::Token",
        Answer::Nodes(_) => "Answer::Nodes",
        Answer::Drained => "Answer::Drained",
        Answer::Revoked { .. } => "Answer::Revoked",
        Answer::Found(_) => "Answer::Found",
        Answer::Offered { .. } => "Answer::Offered",
        Answer::Reserved => "Answer::Reserved",
        Answer::Forgotten => "Answer::Forgotten",
        Answer::TakenBack { .. } => "Answer::TakenBack",
    }
}

fn answers() -> Vec<Answer> {
    let snapshot = SnapshotView {
        resource: orders(),
        taken_at: time(),
        node: parsed("db1"),
        clones: Some(2),
        size_bytes: 200 << 30,
    };
    let view = CloneView {
        id: clone(),
        resource: orders(),
        node: parsed("db1"),
        owner: ada(),
        snapshot: time(),
        created_at: DateTime::from_timestamp(1_795_354_765, 250_000_000).unwrap(),
        state: CloneState::Ready,
        pooled: false,
        expires_at: None,
    };
    let stages = Stages {
        place_ms: 0.5,
        reserve_ms: 1.0,
        storage_ms: 20.25,
        start_ms: 300.0,
        ready_ms: 80.0,
        total_ms: 401.75,
    };
    let offered = Offered {
        load: 0.25,
        bottleneck: Bottleneck::Memory,
        clones: 0.0625,
    };
    vec![
        Answer::Resources(vec![ResourceView {
            name: orders(),
            alias: Some("the orders".to_owned()),
            image: "postgres:15".to_owned(),
            node: parsed("db1"),
            snapshots: vec![time()],
        }]),
        Answer::Snapshots(vec![snapshot.clone()]),
        Answer::Clones {
            clones: vec![view.clone()],
            silent: vec![SilentNode {
                node: parsed("db2"),
                reason: "it is down".to_owned(),
            }],
        },
        Answer::Snapshot(snapshot),
        Answer::Created {
            clone: view.clone(),
            stages,
            considered: vec![Considered {
                node: parsed("db1"),
                expected: Some(offered),
                offered: None,
                outcome: Outcome::Chosen,
            }],
        },
        Answer::Destroyed,
        Answer::DestroyedAll { clones: 9, bases: 1 },
        Answer::Certificate(certificate()),
        Answer::Account(Account {
            user: "app".to_owned(),
            password: Some("secret".to_owned()),
            database: "app".to_owned(),
        }),
        Answer::Relay {
            version: "0.1.0".to_owned(),
            bytes: 4 << 20,
        },
        Answer::Token(TokenText("zdap1-x".to_owned())),
        Answer::Nodes(vec![NodeView {
            name: parsed("db1"),
            address: "10.0.0.1:43210".to_owned(),
            state: NodeState::Alive,
            generation: 1_795_354_765_250,
            clones: 4,
            snapshots: 3,
            free_bytes: 5,
            total_bytes: 6,
            available_memory_bytes: 7,
            total_memory_bytes: 8,
            load: 0.5,
            resources: vec![orders()],
            version: "0.1.0".to_owned(),
        }]),
        Answer::Drained,
        Answer::Revoked { is_known: true },
        Answer::Found(Some(FoundClone {
            clone: view,
            attempt: 1,
        })),
        Answer::Offered {
            offered,
            per_clone: 0.125,
            clones: 12,
        },
        Answer::Reserved,
        Answer::Forgotten,
        Answer::TakenBack { is_gone: true },
    ]
}

const KINDS: [RefusalKind; 8] = [
    RefusalKind::Invalid,
    RefusalKind::NotFound,
    RefusalKind::Forbidden,
    RefusalKind::Conflict,
    RefusalKind::Unavailable,
    RefusalKind::Full,
    RefusalKind::Timeout,
    RefusalKind::Failed,
];

fn name_of_kind(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::Invalid => "RefusalKind::Invalid",
        RefusalKind::NotFound => "RefusalKind::NotFound",
        RefusalKind::Forbidden => "RefusalKind::Forbidden",
        RefusalKind::Conflict => "RefusalKind::Conflict",
        RefusalKind::Unavailable => "RefusalKind::Unavailable",
        RefusalKind::Full => "RefusalKind::Full",
        RefusalKind::Timeout => "RefusalKind::Timeout",
        RefusalKind::Failed => "RefusalKind::Failed",
    }
}

fn refusal(kind: RefusalKind) -> Refusal {
    Refusal::new(kind, "no")
}

fn certificate() -> Certificate {
    Certificate {
        certificate: vec![1; 3],
        ca: vec![2; 3],
    }
}

fn parsed<T: std::str::FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn orders() -> ResourceName {
    parsed("orders")
}

fn request_id() -> RequestId {
    parsed("000102030405060708090a0b0c0d0e0f")
}

fn clone() -> CloneId {
    parsed("orders-k3v9x2mq")
}

fn ada() -> zdap_proto::name::UserName {
    parsed("ada@laptop")
}

fn time() -> SnapshotTime {
    parsed("2026-11-22T13:39:25Z")
}
