//! Which files make an identity, and what the refusals say.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
};

use tempfile::TempDir;

use super::*;
use crate::quic::tests::fleet::{Fleet, key};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn write(directory: &TempDir, name: &str, text: &str, mode: u32) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// The refusal of a file with this text and mode 0600.
fn refusal_of(text: &str) -> KeyFileError {
    let directory = directory();
    KeyFile::load(&write(&directory, "device.key", text, 0o600)).unwrap_err()
}

/// `data` in base 64 (RFC 4648), for PEM blocks of forms that our writer does not make.
fn pem(label: &str, data: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in data.chunks(3) {
        let mut word = [0; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from(word[0]) << 16 | u32::from(word[1]) << 8 | u32::from(word[2]);
        for digit in 0..4 {
            let is_used = digit <= chunk.len();
            let value = DIGITS[(word >> (18 - 6 * digit) & 63) as usize] as char;
            text.push(if is_used { value } else { '=' });
        }
    }
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|l| std::str::from_utf8(l).unwrap())
        .collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[test]
fn created_key_is_private_and_read_again() {
    let directory = directory();
    let path = directory.path().join("device.key");
    let created = KeyFile::create(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let loaded = KeyFile::load(&path).unwrap();
    assert_eq!(loaded.public(), created.public());
    assert_eq!(loaded.device_key().public(), loaded.consensus_key().public());
    let names: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "nothing unfinished is left behind");
    let other = KeyFile::create(&directory.path().join("other.key")).unwrap();
    assert_ne!(other.public(), created.public());
}

#[test]
fn key_is_never_overwritten() {
    let directory = directory();
    let path = directory.path().join("device.key");
    let first = KeyFile::create(&path).unwrap();
    let error = KeyFile::create(&path).unwrap_err();
    assert!(matches!(error, KeyFileError::Exists(_)), "{error}");
    assert!(error.to_string().contains("never overwritten"));
    assert_eq!(KeyFile::load(&path).unwrap().public(), first.public());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn file_is_pkcs8_version_1() {
    // RFC 8410 §10.3, the first example of a private key.
    let text = "-----BEGIN PRIVATE KEY-----\n\
                MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                -----END PRIVATE KEY-----\n";
    let directory = directory();
    let key = KeyFile::load(&write(&directory, "rfc.key", text, 0o600)).unwrap();
    assert_eq!(
        to_hex(&key.public()),
        "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"
    );
    assert_eq!(key.to_pem().as_str(), text);
}

#[test]
fn missing_key_is_said() {
    let error = KeyFile::load(&directory().path().join("none.key")).unwrap_err();
    assert!(matches!(error, KeyFileError::Missing(_)), "{error}");
    assert!(error.to_string().starts_with("there is no key file"), "{error}");
}

#[test]
fn key_that_others_can_read_is_refused_with_the_cure() {
    let directory = directory();
    let text = key("c1-1").to_pem();
    for mode in [0o644, 0o640, 0o604, 0o620, 0o601] {
        let path = write(&directory, &format!("{mode:o}.key"), &text, mode);
        let error = KeyFile::load(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("has mode {mode:04o}")), "{error}");
        assert!(error.contains("chmod 600"), "{error}");
    }
    assert!(KeyFile::load(&write(&directory, "400.key", &text, 0o400)).is_ok());
}

#[test]
fn symbolic_link_directory_and_pipe_are_refused() {
    let directory = directory();
    let real = write(&directory, "real.key", &key("c1-1").to_pem(), 0o600);
    let link = directory.path().join("link.key");
    symlink(&real, &link).unwrap();
    assert!(matches!(KeyFile::load(&link), Err(KeyFileError::Symlink(_))));
    assert!(matches!(
        KeyFile::load(directory.path()),
        Err(KeyFileError::NotAFile(_))
    ));
    let pipe = directory.path().join("pipe.key");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(KeyFile::load(&pipe), Err(KeyFileError::NotAFile(_))));
}

#[test]
fn key_of_another_user_is_refused_with_the_cure() {
    let directory = directory();
    let path = write(&directory, "device.key", &key("c1-1").to_pem(), 0o600);
    let other = rustix::fs::Uid::from_raw(12_345);
    if rustix::fs::chown(&path, Some(other), None).is_err() {
        // Only root can give a file away; for others the error cannot come up in a test.
        assert!(!rustix::process::geteuid().is_root());
        return;
    }
    let error = KeyFile::load(&path).unwrap_err();
    assert!(
        matches!(error, KeyFileError::ForeignOwner { got: 12_345, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("run `chown"), "{error}");
}

#[test]
fn long_file_is_refused_unread() {
    let error = refusal_of(&"x".repeat(4_097));
    assert!(matches!(error, KeyFileError::TooLong { got: 4097, .. }), "{error}");
}

#[test]
fn several_blocks_are_refused() {
    let two = format!("{}{}", *key("c1-1").to_pem(), *key("c1-2").to_pem());
    let error = refusal_of(&two);
    assert!(matches!(error, KeyFileError::SeveralBlocks { got: 2, .. }), "{error}");
    let with_certificate = format!("{}{}", *key("c1-1").to_pem(), Fleet::new().issue("c1-1").pem);
    assert!(matches!(
        refusal_of(&with_certificate),
        KeyFileError::SeveralBlocks { got: 2, .. }
    ));
}

#[test]
fn text_around_the_block_is_refused() {
    let text = key("c1-1").to_pem();
    for around in [
        format!("# my key\n{}", *text),
        format!("\n{}", *text),
        format!("{}garbage", *text),
        format!("{}\0", *text),
    ] {
        let error = refusal_of(&around);
        assert!(matches!(error, KeyFileError::OutsideText(_)), "{error}");
    }
    // The end of a line is nobody's garbage.
    let directory = directory();
    let crlf = text.replace('\n', "\r\n");
    for (name, good) in [
        ("bare", text.trim_end()),
        ("crlf", &crlf),
        ("blank", &format!("{}\n", *text)),
    ] {
        assert!(KeyFile::load(&write(&directory, name, good, 0o600)).is_ok(), "{name}");
    }
}

#[test]
fn version_2_is_refused_by_its_name() {
    use ed25519_dalek::{SigningKey, pkcs8::EncodePrivateKey as _};
    let text = SigningKey::from_bytes(&[3; 32])
        .to_pkcs8_pem(Default::default())
        .unwrap();
    let error = refusal_of(&text);
    assert!(matches!(error, KeyFileError::Version2(_)), "{error}");
    assert!(error.to_string().contains("PKCS#8 version 2"));
}

#[test]
fn other_algorithms_and_other_blocks_are_refused_by_their_names() {
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let error = refusal_of(&p256.serialize_pem());
    assert!(
        matches!(&error, KeyFileError::OtherAlgorithm { oid, .. } if oid == "1.2.840.10045.2.1"),
        "{error}"
    );
    assert!(matches!(
        refusal_of(&pem("ENCRYPTED PRIVATE KEY", &[0; 40])),
        KeyFileError::Encrypted(_)
    ));
    for label in ["RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "CERTIFICATE", "PUBLIC KEY"] {
        let error = refusal_of(&pem(label, &[0; 40])).to_string();
        assert!(error.contains(&format!("holds a PEM block {label}")), "{error}");
    }
}

#[test]
fn damaged_files_are_refused() {
    let text = key("c1-1").to_pem();
    for (what, damaged) in [
        ("empty", String::new()),
        ("binary", "\0\u{1}\u{2}".to_owned()),
        ("no end", text.split("-----END").next().unwrap().to_owned()),
        ("not base 64", text.replacen("MC4C", "!!!!", 1)),
        (
            "truncated structure",
            pem("PRIVATE KEY", &key("c1-1").to_pkcs8_der()[..47]),
        ),
        (
            "other end",
            text.replace("-----END PRIVATE KEY-----", "-----END CERTIFICATE-----"),
        ),
    ] {
        let error = refusal_of(&damaged);
        assert!(matches!(error, KeyFileError::Malformed { .. }), "{what}: {error}");
    }
    let mut long = key("c1-1").to_pkcs8_der().to_vec();
    long.push(0);
    assert!(matches!(
        refusal_of(&pem("PRIVATE KEY", &long)),
        KeyFileError::Malformed { .. }
    ));
    let directory = directory();
    let path = directory.path().join("not-text.key");
    fs::write(&path, [0xff; 100]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let error = KeyFile::load(&path).unwrap_err();
    assert!(error.to_string().contains("is not text"), "{error}");
}

#[test]
fn printed_keys_show_no_secret() {
    let directory = directory();
    let key = KeyFile::create(&directory.path().join("device.key")).unwrap();
    let secret = to_hex(&key.seed()[..6]);
    for shown in [format!("{key:?}"), format!("{:?}", key.device_key())] {
        assert!(!shown.contains(&secret), "{shown}");
        assert!(shown.contains(&to_hex(&key.public()[..6])), "{shown}");
    }
}

#[test]
fn key_and_certificate_of_one_device_load() {
    let (fleet, directory) = (Fleet::new(), directory());
    let key_path = write(&directory, "c1-1.key", &key("c1-1").to_pem(), 0o600);
    let certificate = write(&directory, "c1-1.pem", &fleet.issue("c1-1").pem, 0o644);
    let identity = Identity::load(&key_path, &certificate).unwrap();
    assert_eq!(identity.device_id(&fleet.chain), fleet.id("c1-1"));
    assert_eq!(identity.certificate_chain().len(), 1);
}

#[test]
fn key_that_does_not_match_its_certificate_is_refused_with_both() {
    let (fleet, directory) = (Fleet::new(), directory());
    let key_path = write(&directory, "c1-1.key", &key("c1-1").to_pem(), 0o600);
    let certificate = write(&directory, "c1-2.pem", &fleet.issue("c1-2").pem, 0o644);
    let error = Identity::load(&key_path, &certificate).unwrap_err().to_string();
    assert!(error.contains("the key does not match the certificate"), "{error}");
    for part in [
        to_hex(&key("c1-1").public()),
        to_hex(&key("c1-2").public()),
        key_path.display().to_string(),
        certificate.display().to_string(),
    ] {
        assert!(error.contains(&part), "{error} lacks {part}");
    }
}

#[test]
fn bad_certificate_files_are_refused() {
    let (fleet, directory) = (Fleet::new(), directory());
    let key_path = write(&directory, "c1-1.key", &key("c1-1").to_pem(), 0o600);
    let none = directory.path().join("none.pem");
    let error = Identity::load(&key_path, &none).unwrap_err();
    assert!(matches!(error, IdentityError::CertificateUnreadable { .. }), "{error}");
    let one = fleet.issue("c1-1").pem;
    let p256 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let other = crate::quic::tests::fleet::leaf_params(&[])
        .self_signed(&p256)
        .unwrap()
        .pem();
    for (what, text) in [
        ("empty", String::new()),
        ("three", one.repeat(3)),
        ("a key", key("c1-1").to_pem().to_string()),
        (
            "garbage",
            "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n".to_owned(),
        ),
        ("not X.509", pem("CERTIFICATE", b"hello")),
        ("P-256", other),
        ("long leaf", pem("CERTIFICATE", &[0x30; 2049])),
    ] {
        let path = write(&directory, "bad.pem", &text, 0o644);
        let error = Identity::load(&key_path, &path).unwrap_err();
        assert!(
            matches!(error, IdentityError::CertificateMalformed { .. }),
            "{what}: {error}"
        );
    }
    let path = write(&directory, "bad.pem", &"x".repeat(20_000), 0o644);
    let error = Identity::load(&key_path, &path).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[test]
fn fleet_name_that_fits_no_uri_is_refused() {
    use crate::certificate::{CertificateAuthority, IssueError};
    for name in ["", "Fleet", "a b", "fleet/7", "flött", &"x".repeat(65)] {
        let error = CertificateAuthority::new(name, &key("ca")).unwrap_err();
        assert!(matches!(error, IssueError::FleetName(_)), "{name}: {error}");
    }
}
