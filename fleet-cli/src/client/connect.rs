//! Opens a client: the operator's identity over QUIC, dialling only.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use futures::FutureExt;
use tokio::runtime::Handle;
use transport::{
    identity::Identity,
    machine::{MachineClock, MachineEntropy, OnPanic, TokioSpawner},
    ports::Transport,
    quic::{QuicConfig, QuicTransport, RefuseAll, Role, hello_of},
    verifier::SharedRegistry,
};

use super::{Client, Context};
use crate::exit::{Exit, Failure, Outcome};

/// Opens the context file at `path` and a transport for it. Connections are made when they are needed.
///
/// # Errors
/// [`Exit::Invalid`]: a file is wrong; the text says which and what to do.
pub fn open(path: &Path) -> Outcome<Client> {
    let context = Context::load(path)?;
    let invalid = |e: &dyn std::fmt::Display| Failure::new(Exit::Invalid, e);
    let identity = Identity::load(&context.key, &context.certificate).map_err(|e| invalid(&e))?;
    if identity.device_id(&context.chain) != context.operator {
        return Err(invalid(&format!(
            "key {} is not the one that the genesis file has for this operator",
            context.key.display()
        ))
        .todo("name the right key, label and genesis file in the context"));
    }
    let addresses: BTreeMap<_, _> = context.peers.iter().map(|peer| (peer.id, peer.address)).collect();
    let config = QuicConfig {
        listen: ([0, 0, 0, 0], 0).into(),
        role: Role::Client,
        identity,
        genesis: Arc::new(context.genesis.clone()),
        registry: SharedRegistry::new(Arc::new(context.registry.clone())),
        addresses,
        hello: hello_of(context.chain, context.operator),
    };
    let transport = QuicTransport::start(
        config,
        Arc::new(RefuseAll),
        Arc::new(TokioSpawner::new(Handle::current(), OnPanic::StopProcess)),
        Arc::new(MachineClock::new()),
        Arc::new(MachineEntropy::new()),
    )
    .map_err(|e| invalid(&e))?;
    let (explain, closing) = (transport.clone(), transport.clone());
    let client = Client::new(context, transport as Arc<dyn Transport>);
    Ok(client
        .explaining(Arc::new(move |id| explain.last_dial_error(id)))
        .closing(Arc::new(move || {
            let transport = closing.clone();
            async move { transport.close().await }.boxed()
        })))
}

/// Runs `work` with a client of the context at `path`, and closes its connections however it ends:
/// a process keeps a place for each until it hears that, or for the idle time.
///
/// # Errors
/// Of [`open`] and of `work`.
pub async fn with<T>(path: &Path, work: impl AsyncFnOnce(&Client) -> Outcome<T>) -> Outcome<T> {
    let client = open(path)?;
    let outcome = work(&client).await;
    client.close().await;
    outcome
}
