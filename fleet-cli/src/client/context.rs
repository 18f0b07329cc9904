//! Whom `fleet` speaks for and to: the fleet's genesis file, an operator's key and certificate, addresses.
//! In: `fleet.toml`. Out: [`Context`].
//!
//! # Rules
//! * Unknown keys are errors; relative paths are relative to the file.
//! * A peer is named by its label in the genesis file, never by its address alone.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use common::{
    genesis::{Genesis, Kind},
    ids::{ChainId, ClusterId, DeviceId, NodeIdx, RaftNodeId},
    registry::Registry,
};
use serde::{Deserialize, Serialize};

use crate::{
    ca::load_genesis,
    exit::{Exit, Failure, Outcome},
};

/// `fleet.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// The genesis file.
    pub genesis: PathBuf,
    /// Label of the operator in the genesis file.
    pub label: String,
    /// The operator's key: PEM, PKCS#8 version 1, mode 0600.
    pub key: PathBuf,
    /// Its certificate.
    pub certificate: PathBuf,
    /// Where entry numbers and pending entries are kept. One per key: never share it, never copy it back.
    pub data_dir: PathBuf,
    /// Agents and validators.
    #[serde(default, rename = "peer")]
    pub peers: Vec<PeerFile>,
}

/// A process in `fleet.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerFile {
    /// Label in the genesis file.
    pub label: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Local socket of an agent on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// A process that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name for people.
    pub label: String,
    /// Identity.
    pub id: DeviceId,
    /// Number in the genesis file.
    pub idx: NodeIdx,
    /// Cluster of an agent; `None` for a validator.
    pub cluster: Option<ClusterId>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Local socket of an agent on this machine.
    pub socket: Option<PathBuf>,
}

/// A loaded context.
#[derive(Clone, Debug)]
pub struct Context {
    /// The fleet.
    pub genesis: Genesis,
    /// Its identity.
    pub chain: ChainId,
    /// Who is who.
    pub registry: Registry,
    /// The operator.
    pub operator: DeviceId,
    /// Path of its key.
    pub key: PathBuf,
    /// Path of its certificate.
    pub certificate: PathBuf,
    /// Where numbers and pending entries are kept.
    pub data_dir: PathBuf,
    /// In the order of the file.
    pub peers: Vec<Peer>,
    /// Only this agent is asked; then it is the only one in `peers`.
    pub pinned: Option<String>,
}

impl Context {
    /// Reads a context file and what it names.
    ///
    /// # Errors
    /// [`Exit::Invalid`] names file and key.
    pub fn load(path: &Path) -> Outcome<Self> {
        let invalid = |e: &dyn std::fmt::Display| Failure::new(Exit::Invalid, format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(path)
            .map_err(|e| invalid(&e).todo("start a fleet with `fleet dev up`, or name a file with --context"))?;
        let file: ContextFile = toml::from_str(&text).map_err(|e| invalid(&e.to_string().trim_end()))?;
        let base = path.parent().unwrap_or(Path::new(""));
        let genesis = load_genesis(&base.join(&file.genesis))?;
        let registry = Registry::from_genesis(&genesis);
        let operator = registry
            .by_label(&file.label)
            .ok_or_else(|| invalid(&format!("label {:?} is no device of the genesis file", file.label)))?
            .id;
        let mut peers = Vec::new();
        for peer in &file.peers {
            let member = registry
                .by_label(&peer.label)
                .filter(|member| matches!(member.kind, Kind::Drone | Kind::Validator))
                .ok_or_else(|| invalid(&format!("peer {:?} is no agent or validator of the fleet", peer.label)))?;
            peers.push(Peer {
                label: peer.label.clone(),
                id: member.id,
                idx: member.idx,
                cluster: member.cluster,
                address: peer.address,
                socket: peer.socket.as_ref().map(|socket| base.join(socket)),
            });
        }
        Ok(Self {
            chain: genesis.chain_id(),
            operator,
            key: base.join(&file.key),
            certificate: base.join(&file.certificate),
            data_dir: base.join(&file.data_dir),
            genesis,
            registry,
            peers,
            pinned: None,
        })
    }

    /// The same with one agent as the only process that is asked: nobody answers in its place.
    ///
    /// # Errors
    /// [`Exit::Invalid`]: no such agent.
    pub fn pinned_to(&self, label: &str) -> Outcome<Self> {
        let peer = self.peer(label)?.clone();
        if peer.cluster.is_none() {
            return Err(Failure::new(
                Exit::Invalid,
                format!("{label} is a validator, not an agent"),
            ));
        }
        Ok(Self {
            peers: vec![peer],
            pinned: Some(label.to_owned()),
            ..self.clone()
        })
    }

    /// The clusters whose agents are asked: all, or that of the pinned agent.
    pub fn asked_clusters(&self) -> Vec<ClusterId> {
        match (&self.pinned, self.peers.first()) {
            (Some(_), Some(peer)) => peer.cluster.into_iter().collect(),
            _ => self.clusters().collect(),
        }
    }

    /// The agents of a cluster, or of all.
    #[must_use]
    pub fn agents(&self, cluster: Option<ClusterId>) -> Vec<&Peer> {
        self.peers
            .iter()
            .filter(|p| p.cluster.is_some() && (cluster.is_none() || p.cluster == cluster))
            .collect()
    }

    /// The validators.
    #[must_use]
    pub fn validators(&self) -> Vec<&Peer> {
        self.peers.iter().filter(|peer| peer.cluster.is_none()).collect()
    }

    /// A process by its label.
    ///
    /// # Errors
    /// [`Exit::Invalid`].
    pub fn peer(&self, label: &str) -> Outcome<&Peer> {
        self.peers.iter().find(|peer| peer.label == label).ok_or_else(|| {
            Failure::new(
                Exit::Invalid,
                format!("{label:?} is no agent or validator of this context"),
            )
        })
    }

    /// The clusters of the fleet.
    pub fn clusters(&self) -> impl Iterator<Item = ClusterId> + '_ {
        (0..self.genesis.clusters.len() as u32).map(ClusterId)
    }

    /// A cluster by its label.
    ///
    /// # Errors
    /// [`Exit::Invalid`].
    pub fn cluster(&self, label: &str) -> Outcome<ClusterId> {
        self.clusters()
            .find(|id| self.cluster_label(*id) == label)
            .ok_or_else(|| Failure::new(Exit::Invalid, format!("{label:?} is no cluster of this fleet")))
    }

    /// The label of a cluster.
    #[must_use]
    pub fn cluster_label(&self, id: ClusterId) -> String {
        self.genesis
            .clusters
            .get(id.0 as usize)
            .map_or_else(|| format!("cluster {id}"), |c| c.label.to_string())
    }

    /// The label of a device.
    #[must_use]
    pub fn device_label(&self, id: &DeviceId) -> String {
        self.registry
            .by_id(id)
            .map_or_else(|| id.to_hex(), |member| member.label.to_string())
    }

    /// The label of a Raft member.
    #[must_use]
    pub fn raft_label(&self, id: RaftNodeId) -> String {
        self.registry
            .by_idx(id.idx())
            .map_or_else(|| id.to_string(), |member| member.label.to_string())
    }
}
