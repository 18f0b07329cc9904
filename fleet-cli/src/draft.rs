//! From a draft that people write to the genesis file that a fleet agrees on.
//! In: `genesis-draft.toml`. Out: [`Genesis`], valid. Called by `ca genesis`, `dev up` and `demo`.
//!
//! # Rules
//! * Public keys only. A draft may name key files, of which only the public half goes in.
//! * Every problem names its place in the draft.

use std::path::{Path, PathBuf};

use common::{
    codec::{Label, Wire},
    genesis::{
        FaultModel, GENESIS_VERSION, Genesis, GenesisCluster, GenesisDevice, GenesisValidator, Kind, RoleSet,
        SIG_RULE_STRICT, Thresholds, Timing,
    },
    ids::{ClusterId, NodeIdx, from_hex},
    lease_terms::{ClockBounds, LeaseTerms},
    task::Zone,
};
use serde::{Deserialize, Serialize};
use transport::identity::KeyFile;

use crate::{
    clock,
    exit::{Exit, Failure, Outcome},
};

/// Constants of time that fit together, by kind of link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Loopback: development and the demo.
    #[default]
    Dev,
    /// One site, wired or good radio.
    Lan,
    /// Radio mesh.
    Mesh,
    /// Satellite.
    Satcom,
}

impl Profile {
    /// The word in configuration files.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Lan => "lan",
            Self::Mesh => "mesh",
            Self::Satcom => "satcom",
        }
    }

    /// The constants. Each set holds the inequality of `common::lease_terms`.
    #[must_use]
    pub fn timing(self) -> Timing {
        let (custody_ms, lease_ms, global_lease_ms, stop_ms, b, e, idle, delay_ms_max) = match self {
            Self::Dev => (12_000, 6_000, 10_200, 500, 500, 100, 1_000, 200),
            Self::Lan => (30_000, 10_000, 26_700, 2_000, 500, 100, 5_000, 200),
            Self::Mesh => (60_000, 30_000, 49_900, 5_000, 2_000, 500, 5_000, 1_000),
            Self::Satcom => (150_000, 90_000, 127_800, 10_000, 5_000, 1_000, 5_000, 3_000),
        };
        Timing {
            clocks: ClockBounds {
                block_time_bound_ms: b,
                clock_error_ms: e,
                drift_ppm: 500,
            },
            idle_block_interval_ms: idle,
            delay_ms_min: 5,
            delay_ms_max,
            lease: LeaseTerms {
                custody_ms,
                lease_ms,
                global_lease_ms,
                stop_ms,
            },
            regions_min: 0,
        }
    }
}

/// The draft.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// Name of the fleet: lower-case letters, digits, `.`, `-`, `_`.
    pub fleet: String,
    /// Time of height 0, RFC 3339; the time of the command by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub genesis_time: Option<String>,
    /// Public keys of the certificate authorities, hexadecimal.
    pub ca_keys: Vec<String>,
    /// Constants of time.
    #[serde(default)]
    pub profile: Profile,
    /// Operators needed for changes of validators, admins and CA keys.
    #[serde(default = "one")]
    pub admin_threshold: u8,
    /// Operators needed for enrolling, suspending and revoking drones.
    #[serde(default = "one")]
    pub drone_admin_threshold: u8,
    /// Clusters, in order of their ids.
    #[serde(default, rename = "cluster")]
    pub clusters: Vec<DraftCluster>,
    /// Devices, in order of their numbers.
    #[serde(default, rename = "device")]
    pub devices: Vec<DraftDevice>,
}

fn one() -> u8 {
    1
}

/// A cluster of the draft.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftCluster {
    /// Its name.
    pub label: String,
    /// `byzantine` (the default) or `crash`.
    #[serde(default)]
    pub fault_model: DraftFaultModel,
    /// Where its tasks are picked up.
    #[serde(default, rename = "zone")]
    pub zones: Vec<DraftZone>,
}

/// How many faulty devices a roster withstands.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftFaultModel {
    /// Less than a third may lie.
    #[default]
    Byzantine,
    /// All tell the truth or are silent.
    Crash,
}

/// A box on the ground, in whole units so that it is exact.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum DraftZone {
    /// WGS 84, 1e-7 degrees: `[lat, lon]`.
    Geo {
        /// South-west corner.
        min_e7: [i32; 2],
        /// North-east corner.
        max_e7: [i32; 2],
    },
    /// Local frame, millimetres: `[east, north]`.
    Local {
        /// South-west corner.
        min_mm: [i32; 2],
        /// North-east corner.
        max_mm: [i32; 2],
    },
}

/// A device of the draft.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftDevice {
    /// Its name.
    pub label: String,
    /// `drone`, `validator`, `operator` or `gateway`.
    pub kind: DraftKind,
    /// Roles; by default those of its kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
    /// Cluster of a drone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Public key, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Or the file with the private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Whether the vehicle stops by itself at a deadline.
    #[serde(default = "yes")]
    pub stops_by_itself: bool,
    /// Consensus key of a validator, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consensus_key: Option<String>,
    /// Or the file with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consensus_key_file: Option<PathBuf>,
    /// Voting weight of a validator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u64>,
    /// Region of a validator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

fn yes() -> bool {
    true
}

/// What a device is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DraftKind {
    /// Runs an agent.
    #[default]
    Drone,
    /// Runs a validator.
    Validator,
    /// A person or a program with an operator's key.
    Operator,
    /// A bridge to another system.
    Gateway,
}

const ROLE_WORDS: [(&str, RoleSet); 8] = [
    ("task.submit", RoleSet::TASK_SUBMIT),
    ("task.claim", RoleSet::TASK_CLAIM),
    ("cluster.vote", RoleSet::CLUSTER_VOTE),
    ("bft.vote", RoleSet::BFT_VOTE),
    ("op.read", RoleSet::OP_READ),
    ("op.task", RoleSet::OP_TASK),
    ("op.drone_admin", RoleSet::OP_DRONE_ADMIN),
    ("op.admin", RoleSet::OP_ADMIN),
];

impl DraftKind {
    fn kind(self) -> Kind {
        match self {
            Self::Drone => Kind::Drone,
            Self::Validator => Kind::Validator,
            Self::Operator => Kind::Operator,
            Self::Gateway => Kind::Gateway,
        }
    }

    fn default_roles(self) -> RoleSet {
        match self {
            Self::Drone => RoleSet::TASK_SUBMIT
                .with(RoleSet::TASK_CLAIM)
                .with(RoleSet::CLUSTER_VOTE),
            Self::Validator => RoleSet::BFT_VOTE,
            Self::Operator => RoleSet::TASK_SUBMIT
                .with(RoleSet::OP_READ)
                .with(RoleSet::OP_TASK)
                .with(RoleSet::OP_DRONE_ADMIN)
                .with(RoleSet::OP_ADMIN),
            Self::Gateway => RoleSet::TASK_SUBMIT.with(RoleSet::OP_READ),
        }
    }
}

fn invalid(place: &str, problem: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Invalid, format!("genesis draft: {place}: {problem}"))
        .means("no genesis file was written")
        .todo("correct the draft")
}

fn label(text: &str, place: &str) -> Outcome<Label> {
    Label::new(text).map_err(|e| invalid(place, e))
}

fn public_key(hex: &str, place: &str) -> Outcome<[u8; 32]> {
    let mut key = [0; 32];
    if from_hex(hex, &mut key) {
        Ok(key)
    } else {
        Err(invalid(place, format!("{hex:?} is not 64 hexadecimal digits")))
    }
}

impl Draft {
    /// Reads a draft.
    ///
    /// # Errors
    /// [`Exit::Invalid`] with line and column.
    pub fn load(path: &Path) -> Outcome<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Failure::new(Exit::Invalid, format!("cannot read {}: {e}", path.display())))?;
        toml::from_str(&text).map_err(|e| invalid(&path.display().to_string(), e.to_string().trim_end()))
    }

    /// Makes the genesis file. Relative key files are relative to `base`; missing ones are created if
    /// `creates_keys`.
    ///
    /// # Errors
    /// [`Exit::Invalid`] names the place in the draft.
    pub fn build(&self, base: &Path, creates_keys: bool) -> Outcome<Genesis> {
        let too_many = |place: &'static str| move |e| invalid(place, e);
        let genesis_time = match &self.genesis_time {
            None => clock::wall(),
            Some(text) => clock::parse_time(text).map_err(|e| invalid("genesis_time", e))?,
        };
        let ca_keys: Vec<[u8; 32]> = self
            .ca_keys
            .iter()
            .map(|hex| public_key(hex, "ca_keys"))
            .collect::<Outcome<_>>()?;
        let mut devices = Vec::new();
        let mut validators = Vec::new();
        for (at, draft) in self.devices.iter().enumerate() {
            let place = format!("device {:?}", draft.label);
            devices.push(self.device(draft, &place, base, creates_keys)?);
            if draft.kind == DraftKind::Validator {
                validators.push(GenesisValidator {
                    device: NodeIdx(at as u32),
                    consensus_key: key_of(
                        draft.consensus_key.as_ref(),
                        draft.consensus_key_file.as_ref(),
                        &format!("{place}: consensus_key"),
                        base,
                        creates_keys,
                    )?,
                    weight: draft.weight.unwrap_or(1),
                    region: label(draft.region.as_deref().unwrap_or_default(), &place)?,
                });
            }
        }
        let genesis = Genesis {
            version: GENESIS_VERSION,
            fleet: label(&self.fleet, "fleet")?,
            genesis_time,
            sig_rule: SIG_RULE_STRICT,
            ca_keys: ca_keys.try_into().map_err(too_many("ca_keys"))?,
            clusters: self.clusters(&devices)?.try_into().map_err(too_many("cluster"))?,
            devices: devices.try_into().map_err(too_many("device"))?,
            validators: validators.try_into().map_err(too_many("validators"))?,
            thresholds: Thresholds {
                admin: self.admin_threshold,
                drone_admin: self.drone_admin_threshold,
            },
            timing: self.profile.timing(),
        };
        genesis.validate().map_err(|problem| invalid("the whole", problem))?;
        Ok(genesis)
    }

    fn cluster_id(&self, label: &str) -> Option<ClusterId> {
        let at = self.clusters.iter().position(|cluster| cluster.label == label)?;
        Some(ClusterId(at as u32))
    }

    fn device(&self, draft: &DraftDevice, place: &str, base: &Path, creates_keys: bool) -> Outcome<GenesisDevice> {
        let cluster = match &draft.cluster {
            None => None,
            Some(name) => {
                let found = self.cluster_id(name);
                Some(found.ok_or_else(|| invalid(place, format!("cluster {name:?} is not in the draft")))?)
            }
        };
        let mut roles = draft.kind.default_roles();
        if let Some(words) = &draft.roles {
            roles = RoleSet::default();
            for word in words {
                let found = ROLE_WORDS.iter().find(|(name, _)| name == word);
                let (_, role) = found.ok_or_else(|| invalid(place, format!("{word:?} is no role")))?;
                roles = roles.with(*role);
            }
        }
        let key_place = format!("{place}: key");
        Ok(GenesisDevice {
            label: label(&draft.label, place)?,
            kind: draft.kind.kind(),
            roles,
            cluster,
            key: key_of(
                draft.key.as_ref(),
                draft.key_file.as_ref(),
                &key_place,
                base,
                creates_keys,
            )?,
            stops_by_itself: draft.stops_by_itself,
        })
    }

    fn clusters(&self, devices: &[GenesisDevice]) -> Outcome<Vec<GenesisCluster>> {
        (0u32..)
            .zip(&self.clusters)
            .map(|(id, draft)| {
                let place = format!("cluster {:?}", draft.label);
                let zones: Vec<Zone> = draft
                    .zones
                    .iter()
                    .map(|zone| match *zone {
                        DraftZone::Geo { min_e7, max_e7 } => Zone::Geo { min_e7, max_e7 },
                        DraftZone::Local { min_mm, max_mm } => Zone::Local { min_mm, max_mm },
                    })
                    .collect();
                let votes = |device: &GenesisDevice| {
                    device.cluster == Some(ClusterId(id)) && device.roles.contains(RoleSet::CLUSTER_VOTE)
                };
                let roster: Vec<NodeIdx> = (0u32..)
                    .zip(devices)
                    .filter(|(_, device)| votes(device))
                    .map(|(at, _)| NodeIdx(at))
                    .collect();
                Ok(GenesisCluster {
                    label: label(&draft.label, &place)?,
                    zones: zones.try_into().map_err(|e| invalid(&place, e))?,
                    fault_model: match draft.fault_model {
                        DraftFaultModel::Byzantine => FaultModel::Byzantine,
                        DraftFaultModel::Crash => FaultModel::Crash,
                    },
                    roster: roster.try_into().map_err(|e| invalid(&place, e))?,
                })
            })
            .collect()
    }
}

fn key_of(
    hex: Option<&String>,
    file: Option<&PathBuf>,
    place: &str,
    base: &Path,
    creates_keys: bool,
) -> Outcome<[u8; 32]> {
    match (hex, file) {
        (Some(hex), None) => public_key(hex, place),
        (None, Some(file)) => {
            let path = base.join(file);
            let key = if creates_keys && !path.exists() {
                KeyFile::create(&path)
            } else {
                KeyFile::load(&path)
            };
            Ok(key.map_err(|e| invalid(place, e))?.public())
        }
        (Some(_), Some(_)) => Err(invalid(place, "given both as text and as a file")),
        (None, None) => Err(invalid(place, "is missing")),
    }
}

#[cfg(test)]
mod tests {
    use common::codec::{decode, encode};

    use super::*;

    fn hex(seed: u8) -> String {
        common::ids::to_hex(&KeyFile::from_seed(&[seed; 32]).public())
    }

    fn draft() -> String {
        let mut text = format!("fleet = \"test\"\nca_keys = [\"{}\"]\n", hex(1));
        text += "[[cluster]]\nlabel = \"c1\"\n[[cluster.zone]]\nmin_mm = [0, 0]\nmax_mm = [5, 5]\n";
        text += &format!(
            "[[device]]\nlabel = \"c1-1\"\nkind = \"drone\"\ncluster = \"c1\"\nkey = \"{}\"\n",
            hex(2)
        );
        text += &format!(
            "[[device]]\nlabel = \"v1\"\nkind = \"validator\"\nkey = \"{}\"\n",
            hex(3)
        );
        text += &format!("consensus_key = \"{}\"\n", hex(4));
        text += &format!(
            "[[device]]\nlabel = \"op1\"\nkind = \"operator\"\nkey = \"{}\"\n",
            hex(5)
        );
        text
    }

    fn build(text: &str) -> Outcome<Genesis> {
        let draft: Draft = toml::from_str(text).map_err(|e| invalid("text", e))?;
        draft.build(Path::new("."), false)
    }

    #[test]
    fn draft_becomes_a_genesis_file_that_decodes() {
        let genesis = build(&draft()).unwrap();
        assert_eq!(decode::<Genesis>(&encode(&genesis)), Ok(genesis.clone()));
        assert_eq!(genesis.clusters[0].roster.to_vec(), vec![NodeIdx(0)]);
        assert_eq!(genesis.validators[0].device, NodeIdx(1));
        assert!(genesis.devices[2].roles.contains(RoleSet::OP_READ));
    }

    #[test]
    fn example_that_operators_copy_becomes_a_genesis_file() {
        let text = include_str!("../../configs/fleet-dev.toml");
        let mut draft: Draft = toml::from_str(text).unwrap();
        assert_eq!((draft.clusters.len(), draft.devices.len()), (1, 5));
        draft.ca_keys = vec![hex(1)];
        let dir = tempfile::tempdir().unwrap();
        let genesis = draft.build(dir.path(), true).unwrap();
        assert_eq!(decode::<Genesis>(&encode(&genesis)), Ok(genesis));
    }

    #[test]
    fn every_profile_makes_a_valid_fleet() {
        for profile in [Profile::Dev, Profile::Lan, Profile::Mesh, Profile::Satcom] {
            let text = format!("profile = \"{}\"\n{}", profile.word(), draft());
            assert_eq!(build(&text).map(|g| g.timing), Ok(profile.timing()), "{profile:?}");
        }
    }

    #[test]
    fn problem_of_a_draft_names_its_place() {
        let with = |from: &str, to: &str| build(&draft().replacen(from, to, 1)).unwrap_err();
        for (from, to, place) in [
            ("cluster = \"c1\"", "cluster = \"c9\"", "device \"c1-1\""),
            (
                "kind = \"validator\"",
                "kind = \"validator\"\nroles = [\"fly\"]",
                "\"fly\" is no role",
            ),
            ("ca_keys = [\"", "ca_keys = [\"zz", "ca_keys"),
            ("label = \"c1\"", "label = \"c1\"\ncolour = 1", "colour"),
            ("max_mm = [5, 5]", "max_mm = [-5, 5]", "zone"),
            ("consensus_key", "region = \"x\"\n#", "consensus_key: is missing"),
        ] {
            let failure = with(from, to);
            assert_eq!(failure.exit, Exit::Invalid);
            assert!(failure.what.contains(place), "{from} -> {to}: {failure}");
        }
        let twice = draft().replace(&hex(5), &hex(2));
        assert!(build(&twice).unwrap_err().what.contains("a key appears twice"));
    }
}
