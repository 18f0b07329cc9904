//! The relay of a dev fleet: its process, and the socket by which commands reach it.
//!
//! # Rules
//! * When an answer came, the rules it shows are in force.
//! * The rules live in the relay's memory: a relay that was started again has no cuts.
//! * The socket has mode 0600; a line is bounded, and so is the wait for it.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    runtime::Handle,
    time::{sleep, timeout},
};
use transport::{
    machine::{OnPanic, TokioSpawner},
    relay::{self, Counters, End, RelayHandle, Rule, RuledLink},
};

use super::{
    Interrupt, create,
    layout::{Layout, RELAY},
    plan::Plan,
};
use crate::exit::{Exit, Failure, Outcome};

/// Longest line in either direction: every link of the largest fleet, with its rule.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest wait for a line.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a command asks of the relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Puts a rule in force on directed links, each `[from, to]`.
    Set {
        /// Which.
        links: Vec<(String, String)>,
        /// How their datagrams fare.
        rule: Rule,
    },
    /// Takes rules away.
    Heal {
        /// Of links from or to these; all without names.
        names: Option<Vec<String>>,
    },
    /// Changes nothing.
    Show,
}

/// What is in force after a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shown {
    /// Directed links that do not pass everything as it is.
    pub links: Vec<RuledLink>,
    /// What was done with datagrams since the relay's start.
    pub counters: Counters,
}

/// The relay's answer, or why it did nothing.
type Answer = Result<Shown, String>;

/// `fleet dev relay`: runs the relay of the fleet whose plan is `plan`, until it is told to end.
///
/// # Errors
/// A plan without relay, a port that is taken.
pub async fn run(plan: &Path) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    let layout = Layout::new(plan.parent().unwrap_or(Path::new(".")));
    let plan = create::load(&layout)?.ok_or_else(|| super::fleet::no_fleet(&layout))?;
    let Some(spec) = &plan.relay else {
        return Err(without_relay(&layout));
    };
    let ends = plan.names().into_iter().map(|name| End {
        listen: loopback(plan.port(&name)),
        relay: loopback(plan.port_for_peers(&name)),
        name,
    });
    let spawner = TokioSpawner::new(Handle::current(), OnPanic::StopProcess);
    let handle = relay::start(spec.seed, ends.collect(), &spawner).map_err(|e| Failure::new(Exit::Failed, e))?;
    let path = layout.relay_socket();
    let listener = transport::local::server::bind(&path)
        .await
        .map_err(Failure::io(format!("cannot open {}", path.display())))?;
    eprintln!("relay of {} processes, seed {}", plan.names().len(), spec.seed);
    // To be told to end is how this ends.
    let _ = interrupt
        .or(async {
            serve(listener, Arc::new(handle)).await;
            Ok(())
        })
        .await;
    Ok(())
}

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// Answers one connection after the other: commands are rare, and each has its deadline.
async fn serve(listener: UnixListener, relay: Arc<RelayHandle>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = timeout(DEADLINE, serve_one(stream, &relay)).await;
            }
            Err(error) => {
                eprintln!("the relay's socket takes no connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one(mut stream: UnixStream, relay: &RelayHandle) -> io::Result<()> {
    let answer: Answer = match receive::<Request>(&mut stream).await {
        Ok(request) => obey(relay, &request).map(|()| Shown {
            links: relay.rules(),
            counters: relay.counters(),
        }),
        Err(error) => Err(format!("not a request: {error}")),
    };
    send(&mut stream, &answer).await
}

fn obey(relay: &RelayHandle, request: &Request) -> Result<(), String> {
    match request {
        Request::Set { links, rule } => {
            let links = links.iter().map(|(from, to)| (from.as_str(), to.as_str()));
            relay.set(links, *rule).map_err(|e| e.to_string())
        }
        Request::Heal { names: None } => {
            relay.heal();
            Ok(())
        }
        Request::Heal { names: Some(names) } => {
            let names = names.iter().map(String::as_str);
            relay.heal_ends(names).map_err(|e| e.to_string())
        }
        Request::Show => Ok(()),
    }
}

/// Asks the relay of the fleet in `layout`.
///
/// # Errors
/// [`Exit::Invalid`]: the fleet was made without one. [`Exit::NoConnection`]: it does not run.
pub async fn ask(layout: &Layout, plan: &Plan, request: &Request) -> Outcome<Shown> {
    if plan.relay.is_none() {
        return Err(without_relay(layout));
    }
    let path = layout.relay_socket();
    let no_answer = |what: String| {
        Failure::new(Exit::NoConnection, what)
            .means("no link was changed")
            .todo("start it with `fleet dev up`; a relay that was started again has no cuts")
    };
    let asking = async {
        let mut stream = UnixStream::connect(&path).await?;
        send(&mut stream, request).await?;
        receive::<Answer>(&mut stream).await
    };
    let answer = timeout(DEADLINE, asking)
        .await
        .map_err(|_| no_answer(format!("the relay does not answer within {DEADLINE:?}")))?
        .map_err(|e| no_answer(format!("the relay does not answer at {}: {e}", path.display())))?;
    answer.map_err(|why| Failure::new(Exit::Invalid, why).means("no link was changed"))
}

fn without_relay(layout: &Layout) -> Failure {
    let what = format!("the fleet in {} was made without a relay", layout.dir.display());
    Failure::new(Exit::Invalid, what)
        .means("its processes know each other directly: no link can be cut")
        .todo("make another one, in a new --dir and without --no-relay")
}

async fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await
}

async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream).take(LINE_BYTES_MAX);
    reader.read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Whether `name` is the relay's.
#[must_use]
pub fn is_relay(name: &str) -> bool {
    name == RELAY
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dev::plan::Plan, draft::Profile, files};

    /// A relay of a fleet of 1 agent and 1 validator, and who asks it.
    async fn serving() -> (tempfile::TempDir, Layout, Plan) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        files::private_dir(&layout.process(RELAY)).unwrap();
        let plan = Plan::new(1, 1, 1, Profile::Dev).unwrap();
        let any = loopback(0);
        let ends = plan.names().into_iter().zip(1..).map(|(name, port)| End {
            name,
            listen: loopback(port),
            relay: any,
        });
        let spawner = TokioSpawner::new(Handle::current(), OnPanic::Log);
        let handle = relay::start(1, ends.collect(), &spawner).unwrap();
        let listener = transport::local::server::bind(&layout.relay_socket()).await.unwrap();
        tokio::spawn(serve(listener, Arc::new(handle)));
        (dir, layout, plan)
    }

    fn cut(from: &str, to: &str) -> Request {
        Request::Set {
            links: vec![(from.into(), to.into())],
            rule: Rule::CUT,
        }
    }

    #[tokio::test]
    async fn answer_shows_what_is_in_force() {
        let (_dir, layout, plan) = serving().await;
        let shown = ask(&layout, &plan, &cut("v1", "c1-1")).await.unwrap();
        let expected = RuledLink {
            from: "v1".into(),
            to: "c1-1".into(),
            rule: Rule::CUT,
        };
        assert_eq!(shown.links, [expected]);
        assert_eq!(ask(&layout, &plan, &Request::Show).await, Ok(shown));
        let heal = Request::Heal {
            names: Some(vec!["c1-1".into()]),
        };
        assert_eq!(ask(&layout, &plan, &heal).await.unwrap().links, []);
    }

    #[tokio::test]
    async fn what_the_relay_refuses_is_invalid_and_garbage_ends_only_its_connection() {
        let (_dir, layout, plan) = serving().await;
        let failure = ask(&layout, &plan, &cut("v1", "v9")).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.what.contains("v9"), "{failure}");
        for garbage in [
            &b"\xff\xfe\n"[..],
            b"{\"fly\":1}\n",
            b"{\"set\":{\"links\":[],\"rule\":{\"colour\":1}}}\n",
            b"",
        ] {
            let mut stream = UnixStream::connect(layout.relay_socket()).await.unwrap();
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.unwrap();
            let answer: Answer = receive(&mut stream).await.unwrap();
            assert!(answer.unwrap_err().contains("not a request"));
        }
        assert_eq!(ask(&layout, &plan, &Request::Show).await.unwrap().links, []);
    }

    #[tokio::test]
    async fn fleet_without_a_relay_or_with_a_dead_one_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let plan = Plan::new(1, 1, 1, Profile::Dev).unwrap();
        let failure = ask(&layout, &plan, &Request::Show).await.unwrap_err();
        assert_eq!(failure.exit, Exit::NoConnection);
        let failure = ask(&layout, &plan.without_relay(), &Request::Show).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Invalid);
        assert!(failure.todo.contains("--no-relay"), "{failure}");
    }
}
