//! `fleet ca`: the fleet's certificate authority and its genesis file.

use std::path::{Path, PathBuf};

use common::{
    codec::{decode, encode},
    genesis::{Genesis, Kind},
    ids::to_hex,
    registry::Registry,
};
use serde_json::json;
use transport::{
    certificate::{CertificateAuthority, LEAF_DAYS, OPERATOR_LEAF_DAYS, Terms},
    identity::KeyFile,
};

use crate::{
    clock,
    draft::Draft,
    exit::{Exit, Failure, Outcome},
    files,
    printer::Printer,
};

/// `fleet ca`
#[derive(Debug, clap::Subcommand)]
pub enum CaCommand {
    /// Makes the key and the certificate of a new fleet's authority, and a draft of its genesis file.
    ///
    /// The key file has mode 0600 and is not encrypted yet (a passphrase comes in a later version):
    /// keep it on an encrypted disk, offline. Running processes never need it.
    Init {
        /// Name of the fleet: lower-case letters, digits, `.`, `-`, `_`.
        #[arg(long)]
        fleet: String,
        /// Directory for ca.key, ca.pem and genesis-draft.toml.
        #[arg(long)]
        out: PathBuf,
    },
    /// Makes the genesis file from a draft and prints the fleet's identity.
    Genesis {
        /// The draft.
        draft: PathBuf,
        /// The file to make; it must not exist.
        #[arg(long, default_value = "genesis.bin")]
        out: PathBuf,
        /// Creates the key files that the draft names and that do not exist yet.
        #[arg(long)]
        make_keys: bool,
    },
    /// Issues the certificate of a device that the genesis file names.
    Sign {
        /// Label of the device.
        label: String,
        /// The genesis file.
        #[arg(long)]
        genesis: PathBuf,
        /// Key of the authority.
        #[arg(long)]
        ca_key: PathBuf,
        /// The certificate to make; it must not exist.
        #[arg(long)]
        out: PathBuf,
        /// Validity in days; by default 90 for operators, 400 for others.
        #[arg(long)]
        days: Option<u32>,
    },
}

/// Runs `fleet ca`.
///
/// # Errors
/// With the exit code of the fate.
pub fn run(command: CaCommand, printer: &Printer) -> Outcome {
    match command {
        CaCommand::Init { fleet, out } => init(&fleet, &out, printer),
        CaCommand::Genesis { draft, out, make_keys } => genesis(&draft, &out, make_keys, printer),
        CaCommand::Sign {
            label,
            genesis,
            ca_key,
            out,
            days,
        } => sign(&label, &genesis, &ca_key, &out, days, printer),
    }
}

fn invalid(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Invalid, error).means("nothing was made")
}

fn unix_s() -> u64 {
    clock::wall().0 / 1_000_000
}

/// Makes `ca.key` and `ca.pem` in `dir`.
///
/// # Errors
/// If a key is there already: keys are never replaced.
pub fn make_authority(fleet: &str, dir: &Path) -> Outcome<KeyFile> {
    files::private_dir(dir)?;
    let key = KeyFile::create(&dir.join("ca.key")).map_err(|e| {
        Failure::new(Exit::RefusedForSafety, e).means("the fleet's authority exists; nothing was changed")
    })?;
    let authority = CertificateAuthority::new(fleet, &key).map_err(invalid)?;
    let certificate = authority.certificate(unix_s(), clock::random()?).map_err(invalid)?;
    files::write_new(&dir.join("ca.pem"), certificate.pem.as_bytes())?;
    Ok(key)
}

fn init(fleet: &str, dir: &Path, printer: &Printer) -> Outcome {
    let key = make_authority(fleet, dir)?;
    let draft = dir.join("genesis-draft.toml");
    files::write_new(&draft, skeleton(fleet, &key).as_bytes())?;
    printer.object(&json!({
        "fleet": fleet, "ca_key": dir.join("ca.key"), "ca_certificate": dir.join("ca.pem"), "draft": draft,
        "public_key": to_hex(&key.public()),
    }));
    printer.note("the key is not encrypted: keep it offline, on an encrypted disk. Next: edit the draft, then `fleet ca genesis`");
    Ok(())
}

fn skeleton(fleet: &str, key: &KeyFile) -> String {
    format!(
        r#"# Draft of the genesis file. `fleet ca genesis --make-keys` turns it into genesis.bin.
fleet = "{fleet}"
ca_keys = ["{}"]
# Constants of time: dev, lan, mesh or satcom.
profile = "mesh"

# 1 or at least 3 voting drones per cluster, 1 or at least 4 validators.
[[cluster]]
label = "c1"
[[cluster.zone]]            # [latitude, longitude] in 1e-7 degrees; or min_mm, max_mm: [east, north]
min_e7 = [-900000000, -1800000000]
max_e7 = [900000000, 1800000000]

[[device]]
label = "c1-1"
kind = "drone"
cluster = "c1"
key_file = "c1-1.key"       # or key = "64 hexadecimal digits" if the key was made elsewhere

[[device]]
label = "v1"
kind = "validator"
key_file = "v1.key"
consensus_key_file = "v1-consensus.key"

[[device]]
label = "op1"
kind = "operator"
key_file = "op1.key"
"#,
        to_hex(&key.public())
    )
}

fn genesis(draft: &Path, out: &Path, make_keys: bool, printer: &Printer) -> Outcome {
    let base = draft.parent().unwrap_or(Path::new(""));
    let genesis = Draft::load(draft)?.build(base, make_keys)?;
    files::write_new(out, &encode(&genesis))?;
    printer.object(&json!({
        "genesis": out, "fleet": genesis.fleet.as_str(), "chain_id": genesis.chain_id().to_hex(),
        "devices": genesis.devices.len(), "clusters": genesis.clusters.len(), "validators": genesis.validators.len(),
    }));
    Ok(())
}

/// Reads and checks a genesis file.
///
/// # Errors
/// [`Exit::Invalid`].
pub fn load_genesis(path: &Path) -> Outcome<Genesis> {
    let bytes = files::read_bounded(path, common::limits::GENESIS_BYTES_MAX as u64)?;
    decode(&bytes).map_err(|e| Failure::new(Exit::Invalid, format!("{} is no genesis file: {e}", path.display())))
}

/// Issues the certificate of the device `label` in PEM.
///
/// # Errors
/// [`Exit::Invalid`]: no such device, or the authority's key is not in the genesis file.
pub fn issue(genesis: &Genesis, ca_key: &KeyFile, label: &str, days: Option<u32>) -> Outcome<String> {
    if !genesis.ca_keys.contains(&ca_key.public()) {
        return Err(invalid("this authority's key is not in the genesis file").todo("use the key that made the fleet"));
    }
    let registry = Registry::from_genesis(genesis);
    let member = registry
        .by_label(label)
        .ok_or_else(|| invalid(format!("{label:?} is no device of the genesis file")))?;
    let default_days = if member.kind == Kind::Operator {
        OPERATOR_LEAF_DAYS
    } else {
        LEAF_DAYS
    };
    let terms = Terms {
        now_unix_s: unix_s(),
        days: days.unwrap_or(default_days),
        serial: clock::random()?,
    };
    let authority = CertificateAuthority::new(genesis.fleet.as_str(), ca_key).map_err(invalid)?;
    let certificate = authority
        .issue(&member.id, &member.keys[0].to_bytes(), &terms)
        .map_err(invalid)?;
    Ok(certificate.pem)
}

fn sign(label: &str, genesis: &Path, ca_key: &Path, out: &Path, days: Option<u32>, printer: &Printer) -> Outcome {
    let genesis = load_genesis(genesis)?;
    let ca_key = KeyFile::load(ca_key).map_err(invalid)?;
    let pem = issue(&genesis, &ca_key, label, days)?;
    files::write_new(out, pem.as_bytes())?;
    let member = Registry::from_genesis(&genesis)
        .by_label(label)
        .map(|member| member.id.to_hex());
    printer.object(&json!({"label": label, "device": member, "certificate": out}));
    Ok(())
}
