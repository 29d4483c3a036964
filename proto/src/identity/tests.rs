use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use chrono::TimeDelta;
use rcgen::{CertificateParams, SanType};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn ca() -> ClusterCa {
    ClusterCa::found(Utc::now()).unwrap()
}

fn subjects() -> Vec<Subject> {
    let owner: UserName = "ada.l+zdap@laptop-1.local".parse().unwrap();
    vec![
        Subject::Node("db1.example".parse().unwrap()),
        Subject::User(owner.clone()),
        Subject::Admin(owner.clone()),
        Subject::Relay {
            owner,
            clone: "orders-k3v9x2mq".parse().unwrap(),
        },
    ]
}

#[test]
fn a_certificate_says_whom_it_is_for_in_whatever_letters_names_have() {
    let ca = ca();
    for subject in subjects() {
        let keypair = Keypair::generate().unwrap();
        let issued = ca
            .issue(&keypair.public_key(), &subject, DAY, Utc::now())
            .unwrap();
        let peer = peer_of(&issued.certificate).unwrap();
        assert_eq!(peer.subject, subject);
        assert_eq!(&peer.cluster, ca.cluster());
        let text = peer.to_string();
        assert!(!text.contains('%') && text.starts_with(&format!("spiffe://{}/", ca.cluster())));
    }
}

/// Signs a certificate with these URIs, as no CA of ours would.
fn signed(uris: &[&str]) -> Vec<u8> {
    let ca = ca();
    let key = Keypair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()))
        .collect();
    params.signed_by(&key.0, &ca.issuer).unwrap().der().to_vec()
}

#[test]
fn a_certificate_with_no_uri_or_with_two_is_nobodys() {
    assert!(matches!(peer_of(&signed(&[])), Err(IdentityError::Uris(0))));
    let two = signed(&["spiffe://abc/user/ada", "spiffe://abc/admin/ada"]);
    assert!(matches!(peer_of(&two), Err(IdentityError::Uris(2))));
}

#[test]
fn an_id_that_is_not_exactly_one_of_ours_is_nobodys() {
    for uri in [
        "https://abc/user/ada",
        "spiffe://abc",
        "spiffe://abc/user",
        "spiffe://abc/user/",
        "spiffe://abc/user/ada/x",
        "spiffe://abc/user/a%64a",
        "spiffe://abc/root/ada",
        "spiffe://abc/user/..",
        "spiffe://a.b/user/ada",
        "spiffe://abc/relay/ada",
        "spiffe://abc/relay/ada/orders",
        "SPIFFE://abc/user/ada",
    ] {
        let peer = peer_of(&signed(&[uri]));
        let refused = matches!(peer, Err(IdentityError::Stranger(_) | IdentityError::Name { .. }));
        assert!(refused, "{uri}: {peer:?}");
    }
    assert!(matches!(
        peer_of(b"no certificate"),
        Err(IdentityError::Unreadable(_))
    ));
}

#[test]
fn only_ed25519_keys_are_certified() {
    let (ca, subject) = (ca(), &subjects()[1]);
    let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut long = Keypair::generate().unwrap().public_key();
    long.push(0);
    for key in [other.subject_public_key_info(), long, vec![], b"key".to_vec()] {
        let issued = ca.issue(&key, subject, DAY, Utc::now());
        assert!(matches!(issued, Err(IdentityError::Key("public"))), "{issued:?}");
    }
}

#[test]
fn a_certificate_of_another_key_or_another_ca_makes_no_identity() {
    let subject = &subjects()[1];
    let (ours, other) = (ca(), ca());
    let keypair = Keypair::generate().unwrap();
    let mut issued = ours
        .issue(&keypair.public_key(), subject, DAY, Utc::now())
        .unwrap();
    let stolen = Identity::new(Keypair::generate().unwrap(), &issued);
    assert!(matches!(stolen, Err(IdentityError::OtherKey)));
    issued.ca = other.certificate_der().to_vec();
    assert!(matches!(
        Identity::new(keypair, &issued),
        Err(IdentityError::OtherCa)
    ));
    let mixed = ClusterCa::from_parts(ours.certificate_der().to_vec(), other.key_der());
    assert!(matches!(mixed, Err(IdentityError::OtherKey)));
}

#[test]
fn no_certificate_outlives_its_ca() {
    let ca = ca();
    let identity = ca.identity(&subjects()[0], 10_000 * DAY, Utc::now()).unwrap();
    assert_eq!(identity.expires_at(), ca.expires_at);
}

#[test]
fn a_certificate_is_good_at_once_where_the_clock_is_half_an_hour_behind() {
    let now = Utc::now();
    let identity = ca().identity(&subjects()[1], DAY, now).unwrap();
    assert!(identity.check_dates(now - TimeDelta::minutes(30)).is_ok());
    let error = identity.check_dates(now - TimeDelta::hours(2)).unwrap_err();
    assert!(error.to_string().contains("this machine's clock says"), "{error}");
    assert!(matches!(
        identity.check_dates(now + TimeDelta::hours(25)),
        Err(IdentityError::Expired { .. })
    ));
}

#[test]
fn what_is_saved_is_loaded_and_is_for_its_owner_only() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("new/state");
    let ca = ca();
    let identity = ca.identity(&subjects()[0], DAY, Utc::now()).unwrap();
    assert!(!Identity::exists(&directory) && !ClusterCa::exists(&directory));
    for _ in 0..2 {
        identity.save(&directory).unwrap(); // the second time replaces
        ca.save(&directory).unwrap();
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("identity.pem")), 0o600);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2);
    assert_eq!(Identity::load(&directory).unwrap().peer(), identity.peer());
    assert_eq!(
        ClusterCa::load(&directory).unwrap().fingerprint(),
        ca.fingerprint()
    );
    assert!(!format!("{identity:?}").contains("key"));
}

#[test]
fn a_key_file_that_others_can_read_or_that_is_cut_off_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("identity.pem");
    ca().identity(&subjects()[1], DAY, Utc::now())
        .unwrap()
        .save(scratch.path())
        .unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() - 1 {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Identity::load(scratch.path()).unwrap_err();
        assert!(error.to_string().contains("identity.pem"), "{length}: {error}");
    }
    std::fs::write(&path, &whole).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = Identity::load(scratch.path()).unwrap_err();
    assert!(error.to_string().contains("(mode 0640)"), "{error}");
    assert!(error.hint().unwrap().starts_with("`chmod 600 "));
}

#[test]
fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
    let now = Utc::now();
    let subject = Subject::User("ada".parse().unwrap());
    let identity = ca()
        .identity(&subject, Duration::from_secs(89 * 24 * 3600), now)
        .unwrap();
    let left = identity.expires_at() - identity.renew_from();
    assert!((left.num_days() - 29).abs() <= 1, "{left}");
    assert!(identity.renew_from() > now);
}
