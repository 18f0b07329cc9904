//! Linked tasks: one that waits for others, and ends with them.

use super::{MachineEvent, execute::Execution};
use crate::{
    bug::{self, Bug},
    entry::transition::Event,
    ids::TaskId,
    limits::AFTER_PER_TASK_MAX,
    task::{Scope, TaskState},
};

const _: () = assert!(AFTER_PER_TASK_MAX <= u8::BITS as usize);

/// What the links of a task say.
struct Links {
    /// Those that are completed: bit i for link i.
    done: u8,
    /// One ended otherwise than completed, where the task's own queue sees it at once.
    ended_here: bool,
    /// One did so elsewhere: the task's cluster sees it with the block.
    ended_elsewhere: bool,
}

impl Execution<'_> {
    /// Lets links follow after something was decided about `id`: those of the task itself if it waits,
    /// and those of the tasks that wait for it if it ended.
    pub(super) fn follow(&mut self, id: TaskId) {
        let Some(row) = self.queue.tasks.get(&id) else {
            return;
        };
        // Other tasks may have waited for this one before it was submitted.
        let mut work = self.queue.index.waiting_for(&id);
        if row.is_waiting() && !row.task().after.is_empty() {
            work.push(id);
        }
        while let Some(id) = work.pop() {
            if self.look_at_links(id) {
                work.extend(self.queue.index.waiting_for(&id));
            }
        }
    }

    /// Whether the task ended because of its links.
    fn look_at_links(&mut self, id: TaskId) -> bool {
        let links = self.links(&id);
        let height = self.height;
        let ended = self.queue.update(&id, |row| {
            row.standing.links_done = links.done;
            let ends = links.ended_here && row.is_waiting();
            if ends {
                row.standing
                    .life
                    .happen(Event::LinkedTaskEnded)
                    .expect("a waiting task fails with its link: the table's row");
                row.drop_ended_custody();
            } else if links.ended_elsewhere && row.state().is_open() && row.standing.ends_at.is_none() {
                row.standing.ends_at = Some((height, MachineEvent::LinkedTaskEnded));
            }
            ends
        });
        if ended {
            self.machine_event(id, MachineEvent::LinkedTaskEnded);
        }
        ended
    }

    /// Whether the task waits for one of which nothing is known: it is not submitted yet, or left so long ago that its line
    /// is gone too.
    pub(super) fn has_unknown_link(&self, id: &TaskId) -> bool {
        let Some(row) = self.queue.tasks.get(id) else {
            return false;
        };
        let mut links = row.task().after.iter().enumerate();
        links.any(|(at, linked)| row.standing.links_done & (1 << at) == 0 && self.queue.state_of(linked).is_none())
    }

    fn links(&self, id: &TaskId) -> Links {
        let row = self.queue.tasks.get(id).expect("the caller found the row");
        let mut links = Links {
            done: row.standing.links_done,
            ended_here: false,
            ended_elsewhere: false,
        };
        for (at, linked) in row.task().after.iter().enumerate() {
            // Not known yet, or no longer: then it counts as what it was when it was last seen.
            let Some((state, scope, through)) = self.queue.state_of(linked) else {
                continue;
            };
            if state == TaskState::Completed || bug::active(Bug::LinkNotAwaited) {
                links.done |= 1 << at;
            } else if !state.is_open() {
                let sees_it_at_once =
                    row.scope() == Scope::Fleet || (scope == Scope::Cluster && through == row.submitted.through);
                links.ended_here |= sees_it_at_once;
                links.ended_elsewhere |= !sees_it_at_once;
            }
        }
        links
    }
}
