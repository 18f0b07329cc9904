//! Makes a dev fleet on disk: keys, authority, genesis file, certificates, configurations.
//!
//! # Rules
//! * `plan.json` is written last; without it the directory is not a fleet and nothing is started.
//! * Ports lie below the range from which the system gives ports to dialling sockets: a process that
//!   is down for a moment does not lose its port to a client.

use std::{fmt::Write, net::UdpSocket};

use common::{codec::encode, ids::to_hex};
use transport::identity::KeyFile;

use super::{
    layout::{Layout, RELAY, SOCKET_PATH_BYTES_MAX},
    plan::Plan,
};
use crate::{
    ca,
    client::context::{ContextFile, PeerFile},
    clock,
    draft::{Draft, DraftCluster, DraftDevice, DraftKind},
    exit::{Exit, Failure, Outcome},
    files,
};

/// Finds `count` free UDP ports on loopback.
fn free_ports(count: usize) -> Outcome<Vec<u16>> {
    let ephemeral_from: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(32_768);
    let (from, to) = if ephemeral_from > 14_000 {
        (10_000, ephemeral_from)
    } else {
        (20_000, u16::MAX)
    };
    let span = u64::from(to - from);
    let start = u64::from_le_bytes(clock::random()?) % span;
    // Held until all are found, so that none is found twice.
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for step in 0..span {
        if ports.len() == count {
            return Ok(ports);
        }
        let port = from + ((start + step) % span) as u16;
        if let Ok(socket) = UdpSocket::bind(("127.0.0.1", port)) {
            held.push(socket);
            ports.push(port);
        }
    }
    Err(Failure::new(
        Exit::Failed,
        format!("no {count} free UDP ports from {from} to {to} on 127.0.0.1"),
    ))
}

/// Makes the fleet in `layout` and returns its plan with ports.
///
/// # Errors
/// [`Exit::RefusedForSafety`] if a part of a fleet is there already; else of the file system.
pub fn create(layout: &Layout, mut plan: Plan) -> Outcome<Plan> {
    let longest = plan
        .agents()
        .map(|(_, name)| layout.socket(&name))
        .max_by_key(|path| path.as_os_str().len());
    if let Some(path) = longest.filter(|path| path.as_os_str().len() > SOCKET_PATH_BYTES_MAX) {
        return Err(Failure::new(
            Exit::Invalid,
            format!(
                "{} has more than {SOCKET_PATH_BYTES_MAX} bytes, too long for a Unix socket",
                path.display()
            ),
        )
        .todo("choose a --dir with a shorter path"));
    }
    if layout.ca().exists() || layout.genesis().exists() {
        return Err(Failure::new(
            Exit::RefusedForSafety,
            format!("{} holds an unfinished fleet", layout.dir.display()),
        )
        .todo("remove the directory, or choose another --dir"));
    }
    let names = plan.names();
    let mut ports = free_ports(2 * names.len())?.into_iter();
    plan.ports = names.iter().cloned().zip(ports.by_ref()).collect();
    if let Some(relay) = &mut plan.relay {
        relay.ports = names.iter().cloned().zip(ports).collect();
        files::private_dir(&layout.process(RELAY))?;
    }
    let fleet_name = "muster-dev";
    let ca_key = ca::make_authority(fleet_name, &layout.ca())?;
    let draft = make_draft(layout, &plan, fleet_name, &ca_key)?;
    let genesis = draft.build(&layout.dir, true)?;
    files::replace(&layout.genesis(), &encode(&genesis))?;
    for name in &names {
        let pem = ca::issue(&genesis, &ca_key, name, None)?;
        files::replace(&layout.process(name).join("device.pem"), pem.as_bytes())?;
        let text = if super::layout::is_validator(name) {
            validator_toml(&plan, name)
        } else {
            agent_toml(&plan, name)
        };
        files::replace(&layout.config(name), text.as_bytes())?;
    }
    let pem = ca::issue(&genesis, &ca_key, "op1", None)?;
    files::replace(&layout.operator().join("op1.pem"), pem.as_bytes())?;
    let context = toml::to_string(&context_file(&plan)).map_err(|e| Failure::new(Exit::Failed, e))?;
    files::replace(&layout.context(), context.as_bytes())?;
    let text = serde_json::to_vec_pretty(&plan).map_err(|e| Failure::new(Exit::Failed, e))?;
    files::replace(&layout.plan(), &text)?;
    Ok(plan)
}

/// Reads the plan of a complete fleet, `None` if there is none.
///
/// # Errors
/// [`Exit::Invalid`]: damaged. [`Exit::RefusedForSafety`]: made by another version.
pub fn load(layout: &Layout) -> Outcome<Option<Plan>> {
    let path = layout.plan();
    if !path.exists() {
        return Ok(None);
    }
    let bytes = files::read_bounded(&path, 1024 * 1024)?;
    let plan: Plan =
        serde_json::from_slice(&bytes).map_err(|e| Failure::new(Exit::Invalid, format!("{}: {e}", path.display())))?;
    let own = env!("CARGO_PKG_VERSION");
    if plan.version != own {
        let what = format!(
            "{} was made by version {}, this is {own}",
            layout.dir.display(),
            plan.version
        );
        return Err(Failure::new(Exit::RefusedForSafety, what).todo("use that version, or another --dir"));
    }
    Ok(Some(plan))
}

fn make_draft(layout: &Layout, plan: &Plan, fleet: &str, ca_key: &KeyFile) -> Outcome<Draft> {
    let clusters = (0..plan.clusters as usize)
        .map(|at| DraftCluster {
            label: format!("c{}", at + 1),
            fault_model: Default::default(),
            zones: plan.zones(at),
        })
        .collect();
    let mut devices = Vec::new();
    for (cluster, name) in plan.agents() {
        let dir = layout.process(&name);
        files::private_dir(&dir)?;
        devices.push(DraftDevice {
            label: name,
            kind: DraftKind::Drone,
            cluster: Some(format!("c{cluster}")),
            key_file: Some(dir.join("device.key")),
            stops_by_itself: true,
            ..DraftDevice::default()
        });
    }
    for name in plan.genesis_validators() {
        let dir = layout.process(&name);
        files::private_dir(&dir)?;
        devices.push(DraftDevice {
            label: name,
            kind: DraftKind::Validator,
            key_file: Some(dir.join("device.key")),
            consensus_key_file: Some(dir.join("consensus.key")),
            ..DraftDevice::default()
        });
    }
    files::private_dir(&layout.operator())?;
    for name in plan.operators() {
        devices.push(DraftDevice {
            key_file: Some(layout.operator().join(format!("{name}.key"))),
            label: name,
            kind: DraftKind::Operator,
            ..DraftDevice::default()
        });
    }
    Ok(Draft {
        fleet: fleet.to_owned(),
        genesis_time: None,
        ca_keys: vec![to_hex(&ca_key.public())],
        profile: plan.profile,
        admin_threshold: 1,
        drone_admin_threshold: 1,
        clusters,
        devices,
    })
}

fn peers_toml(plan: &Plan, names: impl Iterator<Item = String>) -> String {
    names.fold(String::new(), |mut text, name| {
        let port = plan.port_for_peers(&name);
        write!(text, "\n[[peer]]\nlabel = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n")
            .expect("writing to a String does not fail");
        text
    })
}

fn common_toml(plan: &Plan, name: &str) -> String {
    format!(
        "genesis = \"../../genesis.bin\"\nlabel = \"{name}\"\nkey = \"device.key\"\ncertificate = \"device.pem\"\n\
         data_dir = \"data\"\nlisten = \"127.0.0.1:{}\"\n",
        plan.port(name)
    )
}

fn agent_toml(plan: &Plan, name: &str) -> String {
    let cluster = name.split('-').next().unwrap_or_default();
    let members = plan
        .agents()
        .map(|(_, peer)| peer)
        .filter(|peer| peer.split('-').next() == Some(cluster));
    let peers = members.filter(|peer| peer != name).chain(plan.validators());
    format!(
        "{}cluster = \"{cluster}\"\n\n[link]\nprofile = \"{}\"\n{}{}",
        common_toml(plan, name),
        plan.profile.word(),
        plan.agent_toml,
        peers_toml(plan, peers)
    )
}

fn validator_toml(plan: &Plan, name: &str) -> String {
    // On one machine nobody runs a copy of the data directory, so a short listening is enough.
    format!(
        "{}consensus_key = \"consensus.key\"\nclone_watch = \"1s\"\n{}",
        common_toml(plan, name),
        peers_toml(plan, plan.validators().filter(|peer| peer != name))
    )
}

fn context_file(plan: &Plan) -> ContextFile {
    let peer = |name: String, socket| PeerFile {
        address: ([127, 0, 0, 1], plan.port(&name)).into(),
        label: name,
        socket,
    };
    let agents = plan.agents().map(|(_, name)| {
        let socket = format!("agents/{name}/data/{}", transport::local::SOCKET_NAME);
        peer(name, Some(socket.into()))
    });
    ContextFile {
        genesis: "genesis.bin".into(),
        label: "op1".into(),
        key: "operator/op1.key".into(),
        certificate: "operator/op1.pem".into(),
        data_dir: "operator".into(),
        peers: agents.chain(plan.validators().map(|name| peer(name, None))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client::Context, draft::Profile};

    #[test]
    fn made_fleet_is_complete_and_its_context_loads() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let plan = create(&layout, Plan::new(3, 3, 4, Profile::Dev).unwrap()).unwrap();
        assert_eq!(load(&layout), Ok(Some(plan.clone())));
        let context = Context::load(&layout.context()).unwrap();
        assert_eq!((context.agents(None).len(), context.validators().len()), (9, 4));
        assert_eq!(context.agents(Some(context.cluster("c2").unwrap()))[0].label, "c2-1");
        for name in plan.names() {
            let dir = layout.process(&name);
            transport::identity::Identity::load(&dir.join("device.key"), &dir.join("device.pem")).unwrap();
            let text = std::fs::read_to_string(layout.config(&name)).unwrap();
            toml::from_str::<toml::Table>(&text).unwrap();
        }
        let relay = plan.relay.clone().unwrap();
        let mut ports: Vec<u16> = plan.ports.iter().chain(&relay.ports).map(|(_, port)| *port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 26);
        assert_eq!(create(&layout, plan).unwrap_err().exit, Exit::RefusedForSafety);
    }

    #[test]
    fn peers_know_each_other_through_the_relay_and_the_operator_knows_them_directly() {
        for has_relay in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::new(dir.path());
            let plan = Plan::new(1, 3, 4, Profile::Dev).unwrap();
            let plan = create(&layout, if has_relay { plan } else { plan.without_relay() }).unwrap();
            assert_eq!(plan.port("v1") != plan.port_for_peers("v1"), has_relay);
            let agent = std::fs::read_to_string(layout.config("c1-1")).unwrap();
            assert!(agent.contains(&format!("listen = \"127.0.0.1:{}\"", plan.port("c1-1"))));
            assert!(agent.contains(&format!("address = \"127.0.0.1:{}\"", plan.port_for_peers("v1"))));
            let context = std::fs::read_to_string(layout.context()).unwrap();
            assert!(context.contains(&format!("127.0.0.1:{}", plan.port("v1"))));
            let expected = if has_relay { "relay" } else { "v1" };
            assert_eq!(plan.processes()[0], expected);
        }
    }

    #[test]
    fn directory_too_deep_for_a_socket_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(90));
        let failure = create(&Layout::new(&deep), Plan::new(1, 1, 1, Profile::Dev).unwrap()).unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(!deep.exists());
    }
}
