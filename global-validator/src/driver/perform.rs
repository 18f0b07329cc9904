//! Performs what the core asks for, in its order, with as few fsyncs as that allows.

use common::{
    block::{Block, FinalizedBlock, Proposal},
    bug::{self, Bug},
    certificate::Vote,
    ids::{Height, NodeIdx},
    wire::bft::BftMessage,
};
use global_core::{Effect, GuardRecord, Input, Recipient, Record, batch_pool::WantedBatch};

use super::{Driver, Event, Running};
use crate::{execution::Gathered, exit::Stop, peers::wants::Wanted};

/// What waits until everything before it is durable.
enum After {
    Send { to: Recipient, message: BftMessage },
    Vote(Vote),
    Proposal(Box<Proposal>),
}

#[derive(Default)]
struct Round {
    after: Vec<After>,
    finalized: Vec<FinalizedBlock>,
    execute: Vec<Block>,
}

/// Whether the core still waits for it.
fn is_missed(running: &Running, wanted: &Wanted) -> bool {
    match wanted {
        Wanted::Block(digest) => running.core.misses_block(digest),
        Wanted::Batch(batch) => running.core.misses_batch(batch),
    }
}

impl Driver {
    /// Performs effects until none are left: performing some brings others.
    pub(super) async fn perform(&mut self, running: &mut Running) -> Result<(), Stop> {
        while !running.effects.is_empty() {
            let mut round = Round::default();
            for effect in std::mem::take(&mut running.effects) {
                self.begin_effect(running, &mut round, effect)?;
            }
            self.make_durable(&round.finalized).await?;
            self.stopwatch.are_final(&round.finalized, self.now().at.0);
            for finalized in &round.finalized {
                self.block_clock.saw(&finalized.block.header);
            }
            let inputs = self.send_all(round.after);
            for input in inputs {
                self.step(running, input);
            }
            for block in round.execute {
                self.execute(running, &block)?;
            }
            if let Some(last) = round.finalized.last() {
                let header = &last.block.header;
                self.guard.compact((header.epoch, header.view)).await?;
            }
        }
        self.fetcher.keep_only(|wanted| is_missed(running, wanted));
        Ok(())
    }

    fn begin_effect(&mut self, running: &mut Running, round: &mut Round, effect: Effect) -> Result<(), Stop> {
        match effect {
            Effect::Persist(Record::Certificate(_)) if bug::active(Bug::CertificateNotDurable) => {}
            Effect::Persist(record) => self.guard.persist(record),
            Effect::Vote(vote) => {
                let is_new = self.guard.admit(GuardRecord::Vote(vote))?;
                if let Vote::Notarize(ballot) = vote
                    && is_new
                {
                    self.block_clock.judged(&ballot);
                }
                round.after.push(After::Vote(vote));
            }
            Effect::Propose(draft) => {
                let ballot = draft.block.header.ballot();
                self.stopwatch.proposed(draft.block.digest(), self.now().at.0);
                self.guard.admit(GuardRecord::Proposal(ballot))?;
                let proposal = Box::new(draft.sign(self.guard.sign_proposal(&ballot)));
                self.guard.persist(Record::Proposal(proposal.clone()));
                if bug::active(Bug::ProposalNotDurable) {
                    self.peers.send(Recipient::All, &BftMessage::Proposal(proposal.clone()));
                }
                round.after.push(After::Proposal(proposal));
            }
            // Nothing that must be durable is before it: no reason to wait for the disk.
            Effect::Send { to, message } if round.after.is_empty() && !self.guard.has_pending() => {
                self.peers.send(to, &message);
            }
            Effect::Send { to, message } => round.after.push(After::Send { to, message }),
            Effect::SetTimer(at) => running.timer = at,
            Effect::FetchBlock { digest, from } => self.fetch(running, Wanted::Block(digest), &from),
            Effect::FetchBatch(WantedBatch { batch, from }) => self.fetch(running, Wanted::Batch(batch), &from),
            Effect::RequestSync { to, from } => self.request_sync(to, from),
            Effect::Execute(block) => round.execute.push(*block),
            Effect::Finalized(blocks) => round.finalized.extend(blocks),
            // Noted right after the step.
            Effect::Executed { .. } => {}
            Effect::Evidence(evidence) => tracing::warn!(?evidence, "a validator contradicted itself"),
            Effect::Halt(reason) => return Err(Stop::Diverged(reason.to_string())),
        }
        Ok(())
    }

    /// One fsync of the guard's journal, beside one of the block store.
    async fn make_durable(&mut self, finalized: &[FinalizedBlock]) -> Result<(), Stop> {
        let appended = self.blocks.append(finalized);
        let (flushed, appended) = futures::join!(self.guard.flush(), appended);
        flushed?;
        // The writer has stopped the validator with its own reason; this one is only logged.
        appended.map_err(|stopped| Stop::storage("blocks")(std::io::Error::other(stopped)))
    }

    /// Signs and sends what is now allowed to leave. Returns what the core is told of it.
    fn send_all(&self, after: Vec<After>) -> Vec<Input> {
        let mut inputs = Vec::new();
        for after in after {
            match after {
                After::Send { to, message } => self.peers.send(to, &message),
                After::Vote(vote) => {
                    let signed = self.guard.sign_vote(vote);
                    self.peers.send(Recipient::All, &BftMessage::Vote(signed));
                    inputs.push(Input::OwnVote(signed));
                }
                After::Proposal(proposal) => {
                    self.peers.send(Recipient::All, &BftMessage::Proposal(proposal.clone()));
                    inputs.push(Input::OwnProposal(proposal));
                }
            }
        }
        inputs
    }

    /// The batches of a block's references.
    pub(crate) fn gather(&self, block: &Block) -> Result<Gathered, Stop> {
        let batches = block
            .refs
            .iter()
            .map(|name| self.batches.verified(&name.digest))
            .collect::<Result<_, _>>()?;
        Ok(Gathered {
            batches,
            verified: self.verified.clone(),
        })
    }

    /// A later step of the same round may have given up what an earlier one asked for.
    fn fetch(&self, running: &Running, wanted: Wanted, likely: &[NodeIdx]) {
        if is_missed(running, &wanted) {
            self.fetcher.want(wanted, likely);
        }
    }

    /// Looks at what `peer` holds above this validator's tip, for signatures of its own.
    pub(super) fn overhear(&self, peer: NodeIdx, from: Height) {
        let (fetcher, events) = (self.fetcher.clone(), self.sender.clone());
        let overhear = async move {
            let blocks = fetcher.finalized(peer, from).await;
            // The driver may have ended.
            let _ = events.send(Event::Overheard(blocks)).await;
        };
        self.ports.spawner.spawn("overhear", Box::pin(overhear));
    }

    fn request_sync(&self, to: NodeIdx, from: Height) {
        let (fetcher, events) = (self.fetcher.clone(), self.sender.clone());
        let sync = async move {
            let blocks = fetcher.finalized(to, from).await;
            // The driver may have ended.
            let _ = events.send(Event::Synced { from: to, blocks }).await;
        };
        self.ports.spawner.spawn("sync", Box::pin(sync));
    }
}
