//! What is to be done: the content of a task, its states, and where a zone is.

use serde::{Deserialize, Serialize};

use crate::{
    codec::{Blob, BoundedVec, Label, Wire},
    ids::{BlockTime, ClusterId, TaskId},
    limits,
};

/// Where something is. Fixed point, never floating.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Place {
    /// WGS 84.
    Geo {
        /// Latitude, 1e-7 degrees, -90 to 90 degrees.
        lat_e7: i32,
        /// Longitude, 1e-7 degrees, -180 to 180 degrees.
        lon_e7: i32,
        /// Altitude above the ellipsoid, metres.
        alt_m: i32,
    },
    /// A local frame.
    Local {
        /// Metres east of the origin, in millimetres.
        east_mm: i32,
        /// Metres north of the origin, in millimetres.
        north_mm: i32,
        /// Metres above the origin, in millimetres.
        up_mm: i32,
    },
}

impl Place {
    /// Whether coordinates are on the globe.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        match self {
            Place::Geo { lat_e7, lon_e7, .. } => {
                lat_e7.unsigned_abs() <= 900_000_000 && lon_e7.unsigned_abs() <= 1_800_000_000
            }
            Place::Local { .. } => true,
        }
    }
}

/// A box on the ground in one of the two frames; both borders belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Zone {
    /// In WGS 84, 1e-7 degrees: `[lat, lon]`.
    Geo {
        /// South-west corner.
        min_e7: [i32; 2],
        /// North-east corner.
        max_e7: [i32; 2],
    },
    /// In the local frame, millimetres: `[east, north]`.
    Local {
        /// South-west corner.
        min_mm: [i32; 2],
        /// North-east corner.
        max_mm: [i32; 2],
    },
}

impl Zone {
    /// Whether `place` is in this box, whatever its height.
    #[must_use]
    pub fn contains(&self, place: &Place) -> bool {
        let within = |point: [i32; 2], min: &[i32; 2], max: &[i32; 2]| {
            (0..2).all(|axis| (min[axis]..=max[axis]).contains(&point[axis]))
        };
        match (self, place) {
            (Zone::Geo { min_e7, max_e7 }, Place::Geo { lat_e7, lon_e7, .. }) => {
                within([*lat_e7, *lon_e7], min_e7, max_e7)
            }
            (Zone::Local { min_mm, max_mm }, Place::Local { east_mm, north_mm, .. }) => {
                within([*east_mm, *north_mm], min_mm, max_mm)
            }
            _ => false,
        }
    }

    /// Whether the corners are in order.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        let (min, max) = match self {
            Zone::Geo { min_e7, max_e7 } => (min_e7, max_e7),
            Zone::Local { min_mm, max_mm } => (min_mm, max_mm),
        };
        min[0] <= max[0] && min[1] <= max[1]
    }
}

/// What sort of work it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum TaskKind {
    Pickup,
    Dropoff,
    Delivery,
    Survey,
    Patrol,
    Custom,
}

/// What the vehicle does when its lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLeaseLoss {
    /// Stops where it is.
    Stop,
    /// Goes on; then nobody else may be assigned by time alone.
    Continue,
    /// Returns to where it came from.
    Return,
}

/// What the fleet does when the custody of a cluster ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterCustody {
    /// Assigns the task to another cluster.
    Reassign,
    /// Waits in state `unknown` for an operator or the late result.
    Hold,
}

/// Who queues the task, signed by its author.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The whole fleet: ordered globally, then assigned to a cluster.
    Fleet,
    /// One cluster, from the start and for good.
    Cluster,
}

/// Where the task may be done.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Constraints {
    /// Only this cluster.
    pub cluster: Option<ClusterId>,
    /// What the drone must be able to do, ascending.
    pub capabilities: BoundedVec<Label, { limits::LABELS_PER_TASK_MAX }>,
}

/// An author's own key of a task. One key is one task.
pub type TaskKey = Blob<{ limits::TASK_KEY_BYTES_MAX }>;

/// The content of a task: the payload of its `Submit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// The author's own key; the same key with other content is a conflict.
    pub key: TaskKey,
    /// What sort of work it is.
    pub kind: TaskKind,
    /// Counts the author's versions of the task; the first is 0.
    pub revision: u32,
    /// Higher goes first. 100 is the default.
    pub priority: u8,
    /// Not before this time.
    pub earliest_start: Option<BlockTime>,
    /// `expired` after this time.
    pub deadline: Option<BlockTime>,
    /// Where, in order; the first is the pickup point that decides the zone.
    pub places: BoundedVec<Place, { limits::PLACES_PER_TASK_MAX }>,
    /// Mass of the load, grams.
    pub payload_g: u32,
    /// For whom, for people.
    pub requester: Label,
    /// Names and values for people, ascending by name.
    pub labels: BoundedVec<(Label, Label), { limits::LABELS_PER_TASK_MAX }>,
    /// Where it may be done.
    pub constraints: Constraints,
    /// Tasks that must be completed first, ascending; if one ends otherwise, this one fails.
    pub after: BoundedVec<TaskId, { limits::AFTER_PER_TASK_MAX }>,
    /// What the vehicle does when its lease ends.
    pub on_lease_loss: OnLeaseLoss,
    /// What the fleet does when custody ends.
    pub after_custody: AfterCustody,
    /// How often it may be tried, at least 1.
    pub attempts_max: u8,
    /// For the on-board software; not interpreted.
    pub payload: Blob<{ limits::TASK_PAYLOAD_BYTES_MAX }>,
}

impl Task {
    /// A task of `kind` under `key` with every other field at its default.
    #[must_use]
    pub fn new(key: TaskKey, kind: TaskKind) -> Self {
        Self {
            key,
            kind,
            revision: 0,
            priority: 100,
            earliest_start: None,
            deadline: None,
            places: BoundedVec::new(),
            payload_g: 0,
            requester: Label::default(),
            labels: BoundedVec::new(),
            constraints: Constraints::default(),
            after: BoundedVec::new(),
            on_lease_loss: OnLeaseLoss::Stop,
            after_custody: kind.after_custody_default(),
            attempts_max: 3,
            payload: Blob::new(),
        }
    }
}

impl TaskKind {
    /// Goods that may already be on board are not fetched twice: such tasks wait for an operator.
    #[must_use]
    pub fn after_custody_default(self) -> AfterCustody {
        match self {
            TaskKind::Pickup | TaskKind::Dropoff | TaskKind::Delivery => AfterCustody::Hold,
            TaskKind::Survey | TaskKind::Patrol | TaskKind::Custom => AfterCustody::Reassign,
        }
    }
}

impl Wire for Task {
    const BYTES_MAX: usize = limits::PAYLOAD_BYTES_MAX;

    fn validate(&self) -> Result<(), &'static str> {
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        check(!self.key.is_empty(), "the task key is empty")?;
        check(self.attempts_max > 0, "attempts_max is 0")?;
        check(self.places.iter().all(Place::is_valid), "a place is not on the globe")?;
        check(
            self.labels.is_sorted_by(|a, b| a.0 < b.0),
            "labels are not ascending by name",
        )?;
        check(self.after.is_sorted_by(|a, b| a < b), "linked tasks are not ascending")?;
        check(
            self.constraints.capabilities.is_sorted_by(|a, b| a < b),
            "capabilities are not ascending",
        )?;
        check(
            self.on_lease_loss != OnLeaseLoss::Continue || self.after_custody == AfterCustody::Hold,
            "on_lease_loss continue needs after_custody hold: nobody else may start while the vehicle goes on",
        )?;
        if let (Some(start), Some(deadline)) = (self.earliest_start, self.deadline) {
            check(start <= deadline, "earliest_start is after the deadline")?;
        }
        Ok(())
    }
}

/// Where a task is in its life. Finality, freshness and contact stand beside it, never in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum TaskState {
    Queued,
    /// To a cluster.
    Assigned,
    /// By a drone, with lease and fence.
    Claimed,
    Underway,
    Paused,
    Completed,
    Failed,
    Canceled,
    Expired,
    /// Custody ended and the task says `hold`: an operator or the late result decides.
    Unknown,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Assigned,
        Self::Claimed,
        Self::Underway,
        Self::Paused,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
        Self::Expired,
        Self::Unknown,
    ];

    /// Whether a drone holds it.
    #[must_use]
    pub fn is_held(self) -> bool {
        matches!(self, Self::Claimed | Self::Underway | Self::Paused)
    }

    /// Whether it can still change without an operator's requeue.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Queued | Self::Assigned | Self::Unknown) || self.is_held()
    }

    /// The word used in tables, JSON and errors.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Assigned => "assigned",
            Self::Claimed => "claimed",
            Self::Underway => "underway",
            Self::Paused => "paused",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
            Self::Unknown => "unknown",
        }
    }
}

impl core::fmt::Display for TaskState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        Task::new(b"k".to_vec().try_into().unwrap(), TaskKind::Survey)
    }

    #[test]
    fn vehicle_that_goes_on_needs_a_task_that_waits() {
        let mut task = task();
        task.on_lease_loss = OnLeaseLoss::Continue;
        assert!(task.validate().is_err());
        task.after_custody = AfterCustody::Hold;
        assert_eq!(task.validate(), Ok(()));
    }

    #[test]
    fn zone_holds_its_borders_and_only_its_own_frame() {
        let zone = Zone::Local {
            min_mm: [0, 0],
            max_mm: [10, 20],
        };
        let at = |east_mm, north_mm| Place::Local {
            east_mm,
            north_mm,
            up_mm: 0,
        };
        assert!(zone.contains(&at(0, 20)) && zone.contains(&at(10, 0)));
        assert!(!zone.contains(&at(11, 0)) && !zone.contains(&at(0, -1)));
        assert!(!zone.contains(&Place::Geo {
            lat_e7: 0,
            lon_e7: 0,
            alt_m: 0
        }));
    }

    #[test]
    fn reversed_window_empty_key_and_place_off_the_globe_are_refused() {
        let reversed = Task {
            earliest_start: Some(BlockTime(2)),
            deadline: Some(BlockTime(1)),
            ..task()
        };
        assert!(reversed.validate().is_err());
        assert!(
            Task {
                key: TaskKey::new(),
                ..task()
            }
            .validate()
            .is_err()
        );
        let off = Place::Geo {
            lat_e7: 900_000_001,
            lon_e7: 0,
            alt_m: 0,
        };
        assert!(
            Task {
                places: vec![off].try_into().unwrap(),
                ..task()
            }
            .validate()
            .is_err()
        );
    }
}
