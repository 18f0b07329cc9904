//! Which certificate is admitted, and the exact reason of each refusal.

use std::time::Duration;

use common::genesis::Genesis;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;

use super::*;
use crate::{
    certificate::Terms,
    quic::tests::fleet::{Fleet, issuer, key, leaf_params, now_unix_s, rcgen_key, true_issuer},
};

fn verifier(fleet: &Fleet, expect: Option<DeviceId>) -> FleetVerifier {
    let trust = Arc::new(Trust::from_genesis(&fleet.genesis));
    FleetVerifier::new(trust, fleet.registry.clone(), expect)
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now_unix_s()))
}

fn judge(fleet: &Fleet, leaf: &[u8]) -> Result<Member, NotAdmitted> {
    let leaf = CertificateDer::from(leaf.to_vec());
    let as_server = verifier(fleet, None).check(&leaf, &[], now(), false);
    let as_client = verifier(fleet, None).check(&leaf, &[], now(), true);
    assert_eq!(as_server, as_client);
    as_client
}

fn judge_params(fleet: &Fleet, params: &CertificateParams) -> Result<Member, NotAdmitted> {
    let pair = rcgen_key(&key("c1-2"));
    let certificate = params.signed_by(&pair, &true_issuer(fleet)).unwrap();
    judge(fleet, certificate.der())
}

fn right_name(fleet: &Fleet) -> Vec<String> {
    vec![device_uri(fleet.name(), &fleet.id("c1-2"))]
}

#[test]
fn issued_certificate_is_admitted_as_its_device() {
    let fleet = Fleet::new();
    for label in ["c1-2", "v3", "op1"] {
        let member = judge(&fleet, &fleet.issue(label).der).unwrap();
        assert_eq!(member.label.as_str(), label);
    }
}

#[test]
fn issued_certificate_has_the_profile() {
    let fleet = Fleet::new();
    let der = fleet.issue("c1-2").der;
    assert!(der.len() < 600, "{} bytes", der.len());
    let uri = device_uri(fleet.name(), &fleet.id("c1-2"));
    assert_eq!(uri.rsplit('/').next().unwrap().len(), 52);
    let leaf = CertificateDer::from(der);
    let parsed = EndEntityCert::try_from(&leaf).unwrap();
    assert_eq!(parsed.valid_uri_names().collect::<Vec<_>>(), [uri]);
    assert_eq!(parsed.valid_dns_names().count(), 0);
    assert_eq!(certified_key(&leaf), Some(key("c1-2").public()));
}

#[test]
fn ca_certificate_in_the_chain_is_allowed_and_a_third_is_not() {
    let fleet = Fleet::new();
    let ca = crate::certificate::CertificateAuthority::new(fleet.name(), &key("ca")).unwrap();
    let ca = CertificateDer::from(ca.certificate(now_unix_s(), [1; 16]).unwrap().der);
    let leaf = CertificateDer::from(fleet.issue("c1-2").der);
    let verifier = verifier(&fleet, None);
    assert!(verifier.check(&leaf, std::slice::from_ref(&ca), now(), true).is_ok());
    let three = verifier.check(&leaf, &[ca.clone(), ca], now(), true);
    assert_eq!(
        three,
        Err(NotAdmitted::TooLong {
            leaf_bytes: leaf.len(),
            others: 2
        })
    );
}

#[test]
fn any_ca_key_of_the_genesis_file_admits() {
    let fleet = Fleet::varied(|genesis: &mut Genesis| {
        genesis.ca_keys = vec![key("ca").public(), key("second-ca").public()].try_into().unwrap();
    });
    let pair = rcgen_key(&key("c1-2"));
    let second = issuer(&ca_common_name(fleet.name()), &key("second-ca"));
    let leaf = leaf_params(&right_name(&fleet)).signed_by(&pair, &second).unwrap();
    assert!(judge(&fleet, leaf.der()).is_ok());
}

#[test]
fn foreign_ca_and_foreign_ca_name_are_refused() {
    let fleet = Fleet::new();
    let pair = rcgen_key(&key("c1-2"));
    for issuer in [
        issuer(&ca_common_name(fleet.name()), &key("mallory")),
        issuer("fleet-ca elsewhere", &key("ca")),
    ] {
        let leaf = leaf_params(&right_name(&fleet)).signed_by(&pair, &issuer).unwrap();
        assert!(matches!(judge(&fleet, leaf.der()), Err(NotAdmitted::Chain(_))));
    }
    let own = leaf_params(&right_name(&fleet)).self_signed(&pair).unwrap();
    assert!(matches!(judge(&fleet, own.der()), Err(NotAdmitted::Chain(_))));
}

#[test]
fn leaf_cannot_vouch_for_another_leaf() {
    let fleet = Fleet::new();
    let middle_params = leaf_params(&[device_uri(fleet.name(), &fleet.id("c1-3"))]);
    let middle_key = rcgen_key(&key("c1-3"));
    let middle = middle_params.signed_by(&middle_key, &true_issuer(&fleet)).unwrap();
    let by_middle = rcgen::Issuer::new(middle_params, middle_key);
    let pair = rcgen_key(&key("c1-2"));
    let leaf = leaf_params(&right_name(&fleet)).signed_by(&pair, &by_middle).unwrap();
    let outcome = verifier(&fleet, None).check(leaf.der(), &[middle.der().clone()], now(), true);
    assert!(matches!(outcome, Err(NotAdmitted::Chain(_))), "{outcome:?}");
}

#[test]
fn unregistered_key_is_refused() {
    let fleet = Fleet::new();
    let outcome = judge(&fleet, &fleet.issue("nobody").der);
    assert!(matches!(outcome, Err(NotAdmitted::Unregistered(_))), "{outcome:?}");
}

#[test]
fn every_name_but_the_one_of_the_device_is_refused() {
    let fleet = Fleet::new();
    let right = right_name(&fleet).remove(0);
    let chain_of = |uri: &str| vec![uri.to_owned()];
    for uris in [
        vec![],
        vec![right.clone(), right.clone()],
        vec![right.clone(), "spiffe://else/device/x".to_owned()],
        chain_of(&device_uri(fleet.name(), &fleet.id("c1-3"))),
        chain_of(&right.to_uppercase()),
        chain_of(&device_uri("elsewhere", &fleet.id("c1-2"))),
        chain_of(&format!("{right}/")),
        chain_of(&right[..right.len() - 1]),
    ] {
        let outcome = judge_params(&fleet, &leaf_params(&uris));
        assert!(
            matches!(outcome, Err(NotAdmitted::WrongName { .. })),
            "{uris:?}: {outcome:?}"
        );
    }
    let mut with_dns = leaf_params(&[right]);
    let dns = rcgen::SanType::DnsName("drone.example".try_into().unwrap());
    with_dns.subject_alt_names.push(dns);
    let outcome = judge_params(&fleet, &with_dns);
    assert!(matches!(outcome, Err(NotAdmitted::WrongName { .. })), "{outcome:?}");
}

#[test]
fn ca_certificate_is_no_leaf() {
    let fleet = Fleet::new();
    let mut params = leaf_params(&right_name(&fleet));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let outcome = judge_params(&fleet, &params);
    assert_eq!(outcome, Err(NotAdmitted::Chain("CaUsedAsEndEntity".into())));
}

#[test]
fn certificate_for_another_use_is_refused() {
    let fleet = Fleet::new();
    let mut params = leaf_params(&right_name(&fleet));
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
    let pair = rcgen_key(&key("c1-2"));
    let leaf = params.signed_by(&pair, &true_issuer(&fleet)).unwrap();
    for is_client in [false, true] {
        let outcome = verifier(&fleet, None).check(leaf.der(), &[], now(), is_client);
        assert!(matches!(outcome, Err(NotAdmitted::Chain(_))), "{outcome:?}");
    }
}

#[test]
fn key_of_another_algorithm_is_refused() {
    let fleet = Fleet::new();
    let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let leaf = leaf_params(&right_name(&fleet))
        .signed_by(&p256, &true_issuer(&fleet))
        .unwrap();
    assert_eq!(judge(&fleet, leaf.der()), Err(NotAdmitted::NotEd25519));
}

#[test]
fn small_order_and_non_canonical_keys_are_refused() {
    let fleet = Fleet::new();
    let mut identity_point = [0; 32];
    identity_point[0] = 1;
    let mut not_canonical = [0xff; 32];
    not_canonical[0] = 0xee;
    not_canonical[31] = 0x7f;
    let ca = crate::certificate::CertificateAuthority::new(fleet.name(), &key("ca")).unwrap();
    for weak in [identity_point, [0; 32], not_canonical] {
        // No registry admits such a key, so nobody can be registered under it.
        let leaf = ca.issue(&fleet.id("c1-2"), &weak, &fleet.terms()).unwrap();
        assert!(matches!(judge(&fleet, &leaf.der), Err(NotAdmitted::Unregistered(_))));
    }
}

#[test]
fn expired_and_not_yet_valid_leaves_of_active_keys_are_admitted() {
    let fleet = Fleet::new();
    let ca = crate::certificate::CertificateAuthority::new(fleet.name(), &key("ca")).unwrap();
    for (now_unix_s, days) in [(1_000_000_000, 1), (4_000_000_000, 1)] {
        let terms = Terms {
            now_unix_s,
            days,
            serial: [1; 16],
        };
        let leaf = ca.issue(&fleet.id("c1-2"), &key("c1-2").public(), &terms).unwrap();
        assert!(judge(&fleet, &leaf.der).is_ok());
        let stranger = ca.issue(&fleet.id("nobody"), &key("nobody").public(), &terms).unwrap();
        assert!(matches!(
            judge(&fleet, &stranger.der),
            Err(NotAdmitted::Unregistered(_))
        ));
    }
    // And a good leaf under a clock that booted in 1970.
    let leaf = CertificateDer::from(fleet.issue("c1-2").der);
    let boot = UnixTime::since_unix_epoch(Duration::from_secs(100));
    assert!(verifier(&fleet, None).check(&leaf, &[], boot, true).is_ok());
}

#[test]
fn expired_leaf_of_a_foreign_ca_is_refused_as_foreign() {
    let fleet = Fleet::new();
    let evil = crate::certificate::CertificateAuthority::new(fleet.name(), &key("mallory")).unwrap();
    let terms = Terms {
        now_unix_s: 1_000_000_000,
        days: 1,
        serial: [1; 16],
    };
    let leaf = evil.issue(&fleet.id("c1-2"), &key("c1-2").public(), &terms).unwrap();
    assert!(matches!(judge(&fleet, &leaf.der), Err(NotAdmitted::Chain(_))));
}

#[test]
fn long_leaf_and_garbage_are_refused_before_they_are_parsed() {
    let fleet = Fleet::new();
    let outcome = judge(&fleet, &[0x30; LEAF_BYTES_MAX + 1]);
    assert!(matches!(outcome, Err(NotAdmitted::TooLong { leaf_bytes: 2049, .. })));
    for garbage in [&[][..], &[0x30], &[0xff; 2048], b"-----BEGIN CERTIFICATE-----"] {
        assert!(matches!(judge(&fleet, garbage), Err(NotAdmitted::Malformed(_))));
    }
}

#[test]
fn truncated_certificate_is_refused_at_every_length() {
    let fleet = Fleet::new();
    let der = fleet.issue("c1-2").der;
    for len in 0..der.len() {
        assert!(judge(&fleet, &der[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn other_member_than_the_expected_is_refused() {
    let fleet = Fleet::new();
    let (want, got) = (fleet.id("c1-1"), fleet.id("c1-2"));
    let leaf = CertificateDer::from(fleet.issue("c1-2").der);
    let outcome = verifier(&fleet, Some(want)).check(&leaf, &[], now(), false);
    assert_eq!(outcome, Err(NotAdmitted::NotTheDialled { want, got }));
    assert!(verifier(&fleet, Some(got)).check(&leaf, &[], now(), false).is_ok());
}

#[test]
fn replaced_registry_judges_from_then_on() {
    let fleet = Fleet::new();
    let verifier = verifier(&fleet, None);
    let leaf = CertificateDer::from(fleet.issue("c1-2").der);
    assert!(verifier.check(&leaf, &[], now(), true).is_ok());
    let other = Fleet::varied(|genesis| genesis.timing.lease.stop_ms += 1);
    fleet.registry.replace(other.registry.load());
    let outcome = verifier.check(&leaf, &[], now(), true);
    assert!(matches!(outcome, Err(NotAdmitted::WrongName { .. })), "{outcome:?}");
}

#[test]
fn what_tls_sees_of_any_refusal_is_one_error() {
    let fleet = Fleet::new();
    let verifier = verifier(&fleet, None);
    let name = ServerName::try_from(crate::quic::tls::SERVER_NAME).unwrap();
    let bad = [fleet.issue("nobody").der, vec![0; 10], vec![0; 5_000]];
    for der in bad.map(CertificateDer::from) {
        let as_server = verifier.verify_server_cert(&der, &[], &name, &[], now()).unwrap_err();
        let as_client = verifier.verify_client_cert(&der, &[], now()).unwrap_err();
        assert_eq!((as_server, as_client), (refused(), refused()));
    }
}
