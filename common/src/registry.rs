//! Who is who: devices, their keys, kinds, roles and status. Read from the genesis file; changed
//! only by ordered operations.
//!
//! A certificate admits to a connection; this table decides what its holder may do.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    codec::Label,
    crypto::AdmittedKey,
    genesis::{Genesis, Kind, RoleSet},
    ids::{ChainId, ClusterId, DeviceId, Digest, Height, KeyVersion, NodeIdx},
    recall::{Room, recalled},
};

/// Whether a device's new entries and connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Accepted.
    Active,
    /// Refused until un-suspended.
    Suspended,
    /// Refused for ever.
    Revoked {
        /// Height at which it took effect.
        at: Height,
    },
}

/// One registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Stable identity.
    pub id: DeviceId,
    /// Small number, never reused.
    pub idx: NodeIdx,
    /// What it is.
    pub kind: Kind,
    /// What it may do.
    pub roles: RoleSet,
    /// Cluster of a drone.
    pub cluster: Option<ClusterId>,
    /// Keys by version; version 0 is the first.
    pub keys: Vec<AdmittedKey>,
    /// Consensus key of a validator.
    pub consensus_key: Option<AdmittedKey>,
    /// Whether it is accepted.
    pub status: Status,
    /// Name for people.
    pub label: Label,
    /// Whether its vehicle stops by itself at a deadline.
    pub stops_by_itself: bool,
}

impl Member {
    /// The version in force.
    #[must_use]
    pub fn key_version(&self) -> KeyVersion {
        KeyVersion((self.keys.len() - 1) as u32)
    }

    /// Whether it is active and has every role of `roles`.
    #[must_use]
    pub fn may(&self, roles: RoleSet) -> bool {
        self.status == Status::Active && self.roles.contains(roles)
    }
}

/// All registered devices of one fleet. Copies share the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    chain: ChainId,
    table: Arc<Table>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    members: Vec<Member>,
    by_id: BTreeMap<DeviceId, NodeIdx>,
    by_key: BTreeMap<[u8; 32], NodeIdx>,
}

impl Registry {
    /// The registry at height 0.
    ///
    /// # Panics
    /// If `genesis` was not validated: decoding it does.
    #[must_use]
    pub fn from_genesis(genesis: &Genesis) -> Self {
        let chain = genesis.chain_id();
        recalled(Room::Registry, || Digest(chain.0), || Self::read(genesis, chain))
    }

    fn read(genesis: &Genesis, chain: ChainId) -> Self {
        let mut table = Table::default();
        for (idx, device) in (0u32..).map(NodeIdx).zip(&genesis.devices) {
            let admit = |key| AdmittedKey::admit(key).expect("a decoded genesis file holds admitted keys");
            let consensus = genesis.validators.iter().find(|v| v.device == idx);
            let id = Genesis::device_id(&chain, &device.key);
            table.by_id.insert(id, idx);
            table.by_key.insert(device.key, idx);
            table.members.push(Member {
                id,
                idx,
                kind: device.kind,
                roles: device.roles,
                cluster: device.cluster,
                keys: vec![admit(&device.key)],
                consensus_key: consensus.map(|v| admit(&v.consensus_key)),
                status: Status::Active,
                label: device.label.clone(),
                stops_by_itself: device.stops_by_itself,
            });
        }
        Self {
            chain,
            table: Arc::new(table),
        }
    }

    /// The registry after a change of one member, for tests of what later operations will do.
    ///
    /// # Panics
    /// If there is no such member.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with_change(mut self, idx: NodeIdx, change: impl FnOnce(&mut Member)) -> Self {
        change(&mut Arc::make_mut(&mut self.table).members[idx.0 as usize]);
        self
    }

    /// The fleet.
    #[must_use]
    pub fn chain(&self) -> &ChainId {
        &self.chain
    }

    /// All members in order of their numbers.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.table.members
    }

    /// By small number.
    #[must_use]
    pub fn by_idx(&self, idx: NodeIdx) -> Option<&Member> {
        self.table.members.get(idx.0 as usize)
    }

    /// By identity.
    #[must_use]
    pub fn by_id(&self, id: &DeviceId) -> Option<&Member> {
        self.by_idx(*self.table.by_id.get(id)?)
    }

    /// By the key a peer proved in TLS.
    #[must_use]
    pub fn by_tls_key(&self, key: &[u8; 32]) -> Option<&Member> {
        self.by_idx(*self.table.by_key.get(key)?)
    }

    /// By name for people.
    #[must_use]
    pub fn by_label(&self, label: &str) -> Option<&Member> {
        self.members().iter().find(|member| member.label.as_str() == label)
    }

    /// The key that `author` had at `version`, whatever its status is now: history stays verifiable.
    #[must_use]
    pub fn key(&self, author: &DeviceId, version: KeyVersion) -> Option<&AdmittedKey> {
        self.by_id(author)?.keys.get(version.0 as usize)
    }
}
