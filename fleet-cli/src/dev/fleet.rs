//! A dev fleet in the hands of this process: what runs, and when it is ready.

use std::{collections::BTreeMap, process::Child, time::Duration};

use common::wire::op::Mode;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::{
    create,
    layout::Layout,
    plan::Plan,
    process::{self, Siblings, Started},
};
use crate::{
    client::{Client, Peer},
    exit::{Exit, Failure, Outcome},
    files::{self, Lock},
};

/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(100);

/// A fleet whose processes this command may start and end.
#[derive(Debug)]
pub struct DevFleet {
    /// Where it lies.
    pub layout: Layout,
    /// What it consists of.
    pub plan: Plan,
    siblings: Siblings,
    processes: BTreeMap<String, Started>,
    /// Reaped when they end, so that none stays a zombie under a long-running command.
    children: Vec<Child>,
    is_killed_on_drop: bool,
    _lock: Lock,
}

impl Drop for DevFleet {
    fn drop(&mut self) {
        if self.is_killed_on_drop {
            for process in self.processes.values() {
                process::signal(&self.layout, process, Signal::KILL);
            }
        }
    }
}

impl DevFleet {
    /// Opens the fleet in `layout`; makes it with `plan` if there is none.
    ///
    /// # Errors
    /// [`Exit::Conflict`] while another command has it; refusals of versions and unfinished directories.
    pub fn open(layout: Layout, plan: Option<Plan>) -> Outcome<Self> {
        let siblings = Siblings::find()?;
        if plan.is_none() && !layout.plan().exists() {
            return Err(no_fleet(&layout));
        }
        files::private_dir(&layout.dir)?;
        let lock = Lock::take(&layout.lock())?;
        let found = create::load(&layout)?;
        let is_new = found.is_none();
        let plan = match (found, plan) {
            (Some(plan), _) => plan,
            (None, Some(plan)) => create::create(&layout, plan)?,
            (None, None) => return Err(no_fleet(&layout)),
        };
        let processes = if is_new {
            Vec::new()
        } else {
            process::load_state(&layout)?
        };
        Ok(Self {
            layout,
            plan,
            siblings,
            processes: processes.into_iter().map(|p| (p.name.clone(), p)).collect(),
            children: Vec::new(),
            is_killed_on_drop: false,
            _lock: lock,
        })
    }

    /// The same fleet, whose processes end with this value, even if a panic ends it.
    #[must_use]
    pub fn killed_on_drop(mut self) -> Self {
        self.is_killed_on_drop = true;
        self
    }

    /// Whether a process runs.
    #[must_use]
    pub fn is_alive(&self, name: &str) -> bool {
        self.processes
            .get(name)
            .is_some_and(|p| process::is_alive(&self.layout, p))
    }

    /// Starts those of `names` that do not run; returns their names.
    ///
    /// # Errors
    /// Of the system; what was started before stays recorded.
    pub fn start(&mut self, names: &[String]) -> Outcome<Vec<String>> {
        let mut begun = Vec::new();
        for name in names {
            if self.is_alive(name) {
                continue;
            }
            self.reap();
            let (started, child) = process::start(&self.siblings, &self.layout, name)?;
            self.children.push(child);
            self.processes.insert(name.clone(), started);
            self.save()?;
            begun.push(name.clone());
        }
        Ok(begun)
    }

    /// Kills those of `names` that run, at once; returns their names.
    ///
    /// # Errors
    /// Of the file system.
    pub async fn kill(&mut self, names: &[String]) -> Outcome<Vec<String>> {
        let killed = process::kill(&self.layout, &self.started(names)).await;
        self.reap();
        self.save()?;
        Ok(killed)
    }

    /// Ends those of `names` that run, with time to close their files; returns their names.
    ///
    /// # Errors
    /// Of the file system.
    pub async fn end(&mut self, names: &[String]) -> Outcome<Vec<String>> {
        let ended = process::end(&self.layout, &self.started(names), Duration::from_secs(5)).await;
        self.reap();
        self.save()?;
        Ok(ended)
    }

    /// Names and process ids of all that run.
    #[must_use]
    pub fn pids(&self) -> Vec<(String, i32)> {
        let running = self.processes.values().filter(|p| process::is_alive(&self.layout, p));
        running.map(|p| (p.name.clone(), p.pid)).collect()
    }

    /// Kills one process and does not wait until it is gone; [`kill`](Self::kill) reaps it. Returns whether it ran.
    pub fn kill_now(&self, name: &str) -> bool {
        let process = self.processes.get(name);
        process.is_some_and(|process| process::signal(&self.layout, process, Signal::KILL))
    }

    fn started(&self, names: &[String]) -> Vec<Started> {
        names
            .iter()
            .filter_map(|name| self.processes.get(name).cloned())
            .collect()
    }

    fn reap(&mut self) {
        self.children
            .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
    }

    fn save(&self) -> Outcome {
        let processes: Vec<Started> = self.processes.values().cloned().collect();
        process::save_state(&self.layout, &processes)
    }

    /// Waits until every process of `names` answers, each of their clusters has a leader and takes
    /// writes, and validators have executed a block.
    ///
    /// # Errors
    /// A process that ended, or the deadline, with the end of the log that says why.
    pub async fn wait_ready(&mut self, client: &Client, names: &[String], limit: Duration) -> Outcome {
        let end = Instant::now() + limit;
        loop {
            if let Some(dead) = names.iter().find(|name| !self.is_alive(name)) {
                return Err(Failure::new(
                    Exit::Failed,
                    format!("{dead} ended; the end of its log:\n{}", self.tail(dead)),
                )
                .means("the fleet is not complete")
                .todo(format!("look at {}", self.layout.log(dead).display())));
            }
            let waiting = not_ready(client, names).await;
            let Some((name, reason)) = waiting.first() else {
                return Ok(());
            };
            if Instant::now() >= end {
                let what = format!(
                    "{name} is not ready after {} s: {reason} ({} of {} processes are not); the end of its log:\n{}",
                    limit.as_secs(),
                    waiting.len(),
                    names.len(),
                    self.tail(name)
                );
                return Err(Failure::new(Exit::NoConnection, what)
                    .means("the fleet is not complete")
                    .todo(format!("look at the logs under {}", self.layout.dir.display())));
            }
            sleep(POLL).await;
        }
    }

    fn tail(&self, name: &str) -> String {
        process::log_tail(&self.layout, name, 12)
    }
}

/// There is no fleet in `layout`.
pub fn no_fleet(layout: &Layout) -> Failure {
    Failure::new(Exit::Invalid, format!("there is no fleet in {}", layout.dir.display()))
        .todo("make one with `fleet dev up`")
}

/// The processes of `names` that are not ready, each with the reason.
pub async fn not_ready(client: &Client, names: &[String]) -> Vec<(String, String)> {
    let peers: Vec<&Peer> = client
        .context
        .peers
        .iter()
        .filter(|peer| names.contains(&peer.label))
        .collect();
    let agents: Vec<&Peer> = peers.iter().copied().filter(|peer| peer.cluster.is_some()).collect();
    let validators: Vec<&Peer> = peers.iter().copied().filter(|peer| peer.cluster.is_none()).collect();
    let (of_agents, of_validators) = futures::join!(client.agent_status(&agents), client.validator_status(&validators));
    let mut waiting = Vec::new();
    for (peer, status) in validators.iter().zip(of_validators) {
        match status {
            Err(error) => waiting.push((peer.label.clone(), client.failure_of(peer, error).what)),
            Ok(status) if status.executed.0 == 0 => {
                waiting.push((peer.label.clone(), "no block is executed yet".into()))
            }
            Ok(_) => {}
        }
    }
    for (peer, status) in agents.iter().zip(of_agents) {
        match status {
            Err(error) => waiting.push((peer.label.clone(), client.failure_of(peer, error).what)),
            Ok(status) if status.context.leader.is_none() => {
                waiting.push((peer.label.clone(), "its cluster has no leader".into()))
            }
            Ok(status) if matches!(status.context.mode, Mode::ReadOnly | Mode::CatchingUp) => {
                waiting.push((
                    peer.label.clone(),
                    format!("its mode is {}", status.context.mode.word()),
                ));
            }
            Ok(_) => {}
        }
    }
    waiting
}
