//! Encodings are pinned: a value of every wire type, its bytes in `vectors/*.hex`, both ways.
//!
//! After a deliberate change of a format, write the files anew and review the difference:
//! `MUSTER_WRITE_VECTORS=1 cargo test -p common --test golden_vectors`.

mod samples;

use std::{collections::BTreeSet, fmt::Write as _, fs, path::PathBuf};

use common::{
    codec::{DecodeError, Wire, decode, encode},
    global_queue::GlobalQueue,
    wire::frame::{FrameKind, Protocol, frame_header, read_request_header},
};
use samples::{Samples, digests};

type Attempt<R> = Box<dyn Fn(&[u8]) -> R>;

/// One value with everything that is tried on it.
struct Vector {
    name: String,
    type_name: &'static str,
    bytes: Vec<u8>,
    /// Decodes to the value.
    is_the_value: Attempt<bool>,
    /// What becomes of other bytes.
    reads: Attempt<Reading>,
}

/// What became of bytes.
struct Reading {
    /// By our decoder.
    decoded: Result<(), DecodeError>,
    /// A decoder that knows no canonical form reads the sample from them.
    is_another_spelling: bool,
}

fn vector<T: Wire + PartialEq + Clone + 'static>(name: &str, value: T) -> Vector {
    let path = core::any::type_name::<T>();
    let same = value.clone();
    Vector {
        name: name.to_owned(),
        type_name: path.rsplit("::").next().expect("a path has a last part"),
        bytes: encode(&value),
        is_the_value: Box::new(move |bytes| decode::<T>(bytes).is_ok_and(|got| got == value)),
        reads: Box::new(move |bytes| Reading {
            decoded: decode::<T>(bytes).map(|got| {
                assert!(got != same, "two encodings of one value");
                assert_eq!(encode(&got), bytes, "a value that is encoded otherwise");
            }),
            is_another_spelling: postcard::take_from_bytes::<T>(bytes)
                .is_ok_and(|(got, rest)| rest.is_empty() && got == same),
        }),
    }
}

/// Collects the samples as vectors.
#[derive(Default)]
struct All(Vec<Vector>);

impl Samples for All {
    fn add<T: Wire + PartialEq + Clone + 'static>(&mut self, name: &str, value: T) {
        self.0.push(vector(name, value));
    }
}

fn all() -> Vec<Vector> {
    let mut all = All::default();
    samples::collect(&mut all);
    all.0
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors")
        .join(format!("{name}.hex"))
}

/// Compares `bytes` with a file, or writes the file if that was asked for.
fn check_file(name: &str, bytes: &[u8]) {
    let mut text = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
        }
        text.push('\n');
    }
    let path = file(name);
    if std::env::var_os("MUSTER_WRITE_VECTORS").is_some() {
        fs::write(&path, text).expect("the vectors can be written");
        return;
    }
    let want = fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error}. A new sample? Write its vector with \
             `MUSTER_WRITE_VECTORS=1 cargo test -p common --test golden_vectors` and review it.",
            path.display()
        )
    });
    assert_eq!(
        text, want,
        "the encoding of {name} changed: old files and peers cannot be read any more. If that is \
         meant, raise the format's version and write the vectors anew (see the top of this file)."
    );
}

#[test]
fn every_value_has_the_bytes_in_its_file_and_comes_back_from_them() {
    for vector in all() {
        check_file(&vector.name, &vector.bytes);
        assert!(
            (vector.is_the_value)(&vector.bytes),
            "{} does not come back",
            vector.name
        );
    }
}

#[test]
fn names_of_vectors_are_unique_and_no_file_is_left_over() {
    let mut names: BTreeSet<String> = ["frames", "digests", "global_queue_snapshot"]
        .map(String::from)
        .into_iter()
        .collect();
    for vector in all() {
        assert!(names.insert(vector.name.clone()), "{} is used twice", vector.name);
    }
    for entry in fs::read_dir(file("x").parent().expect("a folder")).expect("the folder of the vectors") {
        let name = entry
            .expect("a readable folder")
            .file_name()
            .into_string()
            .expect("plain names");
        let stem = name.strip_suffix(".hex").unwrap_or(&name);
        assert!(names.contains(stem), "{name} belongs to no sample");
    }
}

#[test]
fn every_wire_type_of_this_crate_has_a_vector() {
    let have: BTreeSet<&str> = all().iter().map(|vector| vector.type_name).collect();
    let mut want = BTreeSet::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the sources") {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source file");
            // Types of tests are indented or stand below the tests' module.
            for line in text.split("mod tests {").next().unwrap_or_default().lines() {
                if let Some(name) = line
                    .strip_prefix("impl Wire for ")
                    .and_then(|rest| rest.strip_suffix(" {"))
                {
                    want.insert(name.to_owned());
                }
            }
        }
    }
    // Made by a macro.
    want.extend(["Notarization", "Nullification", "Finalization"].map(String::from));
    assert!(want.len() > 25, "the sources were not found");
    for name in want {
        assert!(
            have.contains(name.as_str()),
            "{name} is a wire type without a vector: add a sample in tests/golden_vectors/samples.rs"
        );
    }
}

#[test]
fn trailing_byte_is_refused_by_every_type() {
    for vector in all() {
        for extra in [0x00, 0x01, 0x80, 0xff] {
            let mut bytes = vector.bytes.clone();
            bytes.push(extra);
            assert!((vector.reads)(&bytes).decoded.is_err(), "{}", vector.name);
        }
    }
}

#[test]
fn overlong_varint_is_refused_by_every_type() {
    for vector in all() {
        let mut overlong = 0;
        for at in 0..vector.bytes.len() {
            // The last byte of a varint, spelled in two.
            let last = vector.bytes[at];
            if last >= 0x80 {
                continue;
            }
            let mut bytes = vector.bytes.clone();
            bytes.splice(at..=at, [last | 0x80, 0x00]);
            let reading = (vector.reads)(&bytes);
            if reading.is_another_spelling {
                overlong += 1;
                assert_eq!(
                    reading.decoded,
                    Err(DecodeError::NotCanonical),
                    "{} at byte {at}",
                    vector.name
                );
            }
        }
        // All but a bare digest hold a varint somewhere: a tag, a length or a counter.
        let has_varint = vector.type_name != "FetchByDigest";
        assert_eq!(overlong > 0, has_varint, "{}: the attack found no varint", vector.name);
    }
}

#[test]
fn value_cut_at_any_length_is_refused_by_every_type() {
    for vector in all() {
        for end in 0..vector.bytes.len() {
            assert!(
                (vector.reads)(&vector.bytes[..end]).decoded.is_err(),
                "{} of {} bytes of {}",
                end,
                vector.bytes.len(),
                vector.name
            );
        }
    }
}

#[test]
fn huge_length_is_refused_by_every_type() {
    // 2^62, and the largest u64, in place of each byte: of a length among others. What is accepted had
    // a number there, since no input holds so many elements; `reads` checks that it is canonical.
    let huge: [&[u8]; 2] = [
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    ];
    for vector in all() {
        let mut refused = 0;
        // Every byte of all but the longest, whose rows repeat.
        let stride = 1 + vector.bytes.len() / 2_048;
        for at in (0..vector.bytes.len()).step_by(stride) {
            for length in huge {
                let mut bytes = vector.bytes.clone();
                bytes.splice(at..=at, length.iter().copied());
                refused += usize::from((vector.reads)(&bytes).decoded.is_err());
                // The same with nothing behind it: must not be waited or allocated for.
                bytes.truncate(at + length.len());
                refused += usize::from((vector.reads)(&bytes).decoded.is_err());
            }
        }
        assert!(refused > 0, "{}: nothing was refused", vector.name);
    }
}

#[test]
fn frame_headers_are_pinned() {
    let mut bytes = Vec::new();
    for kind in FrameKind::ALL {
        let header = frame_header(kind.byte(), kind.request_bytes_max());
        let (got, len) = read_request_header(kind.protocol(), &header).expect("a request at its cap");
        assert_eq!((got, len), (*kind, kind.request_bytes_max()));
        bytes.extend_from_slice(&header);
    }
    for protocol in Protocol::ALL {
        bytes.extend_from_slice(protocol.alpn());
        bytes.push(b'\n');
    }
    check_file("frames", &bytes);
}

#[test]
fn identities_and_signed_bytes_are_pinned() {
    check_file("digests", &digests());
}

#[test]
fn snapshot_of_the_global_queue_is_pinned() {
    let ledger = samples::ledger();
    let bytes = ledger.queue.to_bytes();
    check_file("global_queue_snapshot", &bytes);
    assert_eq!(
        GlobalQueue::from_bytes(&bytes, &ledger.fleet.genesis),
        Ok(ledger.queue.clone())
    );
}
