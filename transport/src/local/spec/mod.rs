//! A task as JSON: what a person or a program writes, turned into exactly one [`Task`].
//!
//! In: JSON text. Out: [`TaskSpec`], and with names resolved a valid [`Task`]. Called by the command
//! line for flags and files, and by the agent for its local socket.
//!
//! # Rules
//! * Every problem names its field. Unknown fields are refused.
//! * Decimal numbers become fixed point without floating point: `lat`, `lon` in 1e-7 degrees, `alt` in
//!   metres, `east_m`, `north_m`, `up_m` in millimetres.

use std::collections::BTreeMap;

use common::{
    codec::{Label, Wire},
    ids::{BlockTime, ClusterId, TaskId},
    task::{AfterCustody, Constraints, OnLeaseLoss, Place, Task, TaskKey, TaskKind},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    base64,
    fixed::{format_fixed, parse_fixed, quote_non_numbers},
};

/// What is wrong with a task's JSON, and in which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SpecError {
    /// Path of the field, as in `places[0].lat`; `task` for the whole.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

impl SpecError {
    /// A problem of `field`.
    #[must_use]
    pub fn new(field: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self {
            field: field.into(),
            problem: problem.to_string(),
        }
    }
}

/// Looks names up that only a fleet knows.
pub trait Names {
    /// The cluster of a label.
    fn cluster(&self, label: &str) -> Option<ClusterId>;

    /// The task of a reference in `after`. The default takes 64 hexadecimal digits.
    fn task(&self, reference: &str) -> Option<TaskId> {
        TaskId::from_hex(reference)
    }
}

impl Names for common::genesis::Genesis {
    fn cluster(&self, label: &str) -> Option<ClusterId> {
        let at = self
            .clusters
            .iter()
            .position(|cluster| cluster.label.as_str() == label)?;
        Some(ClusterId(at as u32))
    }
}

/// A task with its names not yet looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSpec {
    /// The author's own key, 1 to 64 bytes of UTF-8.
    pub key: String,
    /// What sort of work it is.
    pub kind: TaskKind,
    /// Counts the author's versions of the task.
    pub revision: u32,
    /// Higher goes first.
    pub priority: u8,
    /// Not before this time.
    pub earliest_start: Option<BlockTime>,
    /// `expired` after this time.
    pub deadline: Option<BlockTime>,
    /// Where, in order; the first decides the zone.
    pub places: Vec<Place>,
    /// Mass of the load, grams.
    pub payload_g: u32,
    /// For whom.
    pub requester: String,
    /// Names and values for people.
    pub labels: BTreeMap<String, String>,
    /// What the drone must be able to do.
    pub capabilities: Vec<String>,
    /// Label of the only cluster that may do it.
    pub cluster: Option<String>,
    /// Tasks that must be completed first.
    pub after: Vec<String>,
    /// What the vehicle does when its lease ends.
    pub on_lease_loss: OnLeaseLoss,
    /// What the fleet does when custody ends; by default what fits the kind.
    pub after_custody: Option<AfterCustody>,
    /// How often it may be tried.
    pub max_attempts: u8,
    /// For the on-board software.
    pub payload: Vec<u8>,
}

type Raw = Option<Box<RawValue>>;

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSpec {
    key: Raw,
    kind: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    earliest_start_ms: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    places: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_g: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    requester: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_lease_loss: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_custody: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Raw,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Raw,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPlace {
    lat: Raw,
    lon: Raw,
    alt: Raw,
    east_m: Raw,
    north_m: Raw,
    up_m: Raw,
}

impl TaskSpec {
    /// A task of `kind` under `key` with every other field at its default.
    #[must_use]
    pub fn new(key: impl Into<String>, kind: TaskKind) -> Self {
        Self {
            key: key.into(),
            kind,
            revision: 0,
            priority: 100,
            earliest_start: None,
            deadline: None,
            places: Vec::new(),
            payload_g: 0,
            requester: String::new(),
            labels: BTreeMap::new(),
            capabilities: Vec::new(),
            cluster: None,
            after: Vec::new(),
            on_lease_loss: OnLeaseLoss::Stop,
            after_custody: None,
            max_attempts: 3,
            payload: Vec::new(),
        }
    }

    /// Reads one JSON object.
    ///
    /// # Errors
    /// [`SpecError`] names the field.
    pub fn from_json(text: &str) -> Result<Self, SpecError> {
        let text = quote_non_numbers(text);
        let raw: RawSpec = serde_json::from_str(&text).map_err(|e| SpecError::new("task", e))?;
        let key: String = required(&raw.key, "key")?;
        let mut spec = Self::new(key, required(&raw.kind, "kind")?);
        spec.revision = integer(&raw.revision, "revision", 0)?;
        spec.priority = integer(&raw.priority, "priority", spec.priority)?;
        spec.earliest_start = time_ms(&raw.earliest_start_ms, "earliest_start_ms")?;
        spec.deadline = time_ms(&raw.deadline_ms, "deadline_ms")?;
        let places: Vec<Box<RawValue>> = optional(&raw.places, "places")?.unwrap_or_default();
        for (at, place) in places.iter().enumerate() {
            spec.places
                .push(place_from_json(place.get(), &format!("places[{at}]"))?);
        }
        spec.payload_g = integer(&raw.payload_g, "payload_g", 0)?;
        spec.requester = optional(&raw.requester, "requester")?.unwrap_or_default();
        spec.labels = optional(&raw.labels, "labels")?.unwrap_or_default();
        spec.capabilities = optional(&raw.capabilities, "capabilities")?.unwrap_or_default();
        spec.cluster = optional(&raw.cluster, "cluster")?;
        spec.after = optional(&raw.after, "after")?.unwrap_or_default();
        spec.on_lease_loss = optional(&raw.on_lease_loss, "on_lease_loss")?.unwrap_or(spec.on_lease_loss);
        spec.after_custody = optional(&raw.after_custody, "after_custody")?;
        spec.max_attempts = integer(&raw.max_attempts, "max_attempts", spec.max_attempts)?;
        spec.payload = payload_bytes(&raw)?;
        Ok(spec)
    }

    /// Writes one line of JSON that [`from_json`](Self::from_json) reads back.
    #[must_use]
    pub fn to_json(&self) -> String {
        let places: Vec<Box<RawValue>> = self.places.iter().map(|place| raw_text(place_to_json(place))).collect();
        let some = |holds: bool, value: Box<RawValue>| holds.then_some(value);
        let text = std::str::from_utf8(&self.payload).ok();
        let raw = RawSpec {
            key: Some(raw_of(&self.key)),
            kind: Some(raw_of(&self.kind)),
            revision: some(self.revision != 0, raw_of(&self.revision)),
            priority: Some(raw_of(&self.priority)),
            earliest_start_ms: self.earliest_start.map(|t| raw_text(format_fixed_us(t))),
            deadline_ms: self.deadline.map(|t| raw_text(format_fixed_us(t))),
            places: some(!places.is_empty(), raw_of(&places)),
            payload_g: some(self.payload_g != 0, raw_of(&self.payload_g)),
            requester: some(!self.requester.is_empty(), raw_of(&self.requester)),
            labels: some(!self.labels.is_empty(), raw_of(&self.labels)),
            capabilities: some(!self.capabilities.is_empty(), raw_of(&self.capabilities)),
            cluster: self.cluster.as_ref().map(raw_of),
            after: some(!self.after.is_empty(), raw_of(&self.after)),
            on_lease_loss: Some(raw_of(&self.on_lease_loss)),
            after_custody: self.after_custody.as_ref().map(raw_of),
            max_attempts: Some(raw_of(&self.max_attempts)),
            payload: text.filter(|text| !text.is_empty()).map(raw_of),
            payload_base64: text.is_none().then(|| raw_of(&base64::encode(&self.payload))),
        };
        serde_json::to_string(&raw).expect("texts, numbers and lists have a JSON form")
    }

    /// Looks the names up and checks every rule of a task.
    ///
    /// # Errors
    /// [`SpecError`] names the field.
    pub fn resolve(&self, names: &impl Names) -> Result<Task, SpecError> {
        let key: TaskKey = self
            .key
            .clone()
            .into_bytes()
            .try_into()
            .map_err(|e| SpecError::new("key", format!("in bytes: {e}")))?;
        if key.is_empty() {
            return Err(SpecError::new("key", "is empty"));
        }
        let mut task = Task::new(key, self.kind);
        task.revision = self.revision;
        task.priority = self.priority;
        task.earliest_start = self.earliest_start;
        task.deadline = self.deadline;
        task.places = self
            .places
            .clone()
            .try_into()
            .map_err(|e| SpecError::new("places", e))?;
        task.payload_g = self.payload_g;
        task.requester = label(&self.requester, "requester")?;
        let labels: Vec<(Label, Label)> = self
            .labels
            .iter()
            .map(|(name, value)| {
                let field = format!("labels.{name}");
                Ok((label(name, &field)?, label(value, &field)?))
            })
            .collect::<Result<_, SpecError>>()?;
        task.labels = labels.try_into().map_err(|e| SpecError::new("labels", e))?;
        task.constraints = self.constraints(names)?;
        let mut after = Vec::new();
        for (at, reference) in self.after.iter().enumerate() {
            let found = names.task(reference);
            after.push(found.ok_or_else(|| SpecError::new(format!("after[{at}]"), format!("{reference} is no task")))?);
        }
        after.sort_unstable();
        after.dedup();
        task.after = after.try_into().map_err(|e| SpecError::new("after", e))?;
        task.on_lease_loss = self.on_lease_loss;
        // A vehicle that goes on needs a task that waits for it.
        let default = match self.on_lease_loss {
            OnLeaseLoss::Continue => AfterCustody::Hold,
            _ => self.kind.after_custody_default(),
        };
        task.after_custody = self.after_custody.unwrap_or(default);
        task.attempts_max = self.max_attempts;
        task.payload = self
            .payload
            .clone()
            .try_into()
            .map_err(|e| SpecError::new("payload", e))?;
        task.validate().map_err(|problem| SpecError::new("task", problem))?;
        let bytes = common::codec::encoded_len(&task);
        if bytes > Task::BYTES_MAX {
            let problem = format!("{bytes} bytes encoded, at most {} allowed", Task::BYTES_MAX);
            return Err(SpecError::new("task", problem));
        }
        Ok(task)
    }

    fn constraints(&self, names: &impl Names) -> Result<Constraints, SpecError> {
        let cluster = match &self.cluster {
            None => None,
            Some(name) => Some(
                names
                    .cluster(name)
                    .ok_or_else(|| SpecError::new("cluster", format!("{name} is no cluster of this fleet")))?,
            ),
        };
        let mut capabilities = self
            .capabilities
            .iter()
            .enumerate()
            .map(|(at, name)| label(name, &format!("capabilities[{at}]")))
            .collect::<Result<Vec<_>, _>>()?;
        capabilities.sort_unstable();
        capabilities.dedup();
        Ok(Constraints {
            cluster,
            capabilities: capabilities.try_into().map_err(|e| SpecError::new("capabilities", e))?,
        })
    }
}

fn raw_text(json: String) -> Box<RawValue> {
    RawValue::from_string(json).expect("built from JSON")
}

fn raw_of<T: Serialize + ?Sized>(value: &T) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("texts, numbers and lists have a JSON form")
}

fn optional<T: DeserializeOwned>(raw: &Raw, field: &str) -> Result<Option<T>, SpecError> {
    match raw {
        Some(raw) if raw.get() != "null" => serde_json::from_str(raw.get()).map(Some).map_err(|e| {
            // The position inside the value says nothing; the field does.
            let text = e.to_string();
            SpecError::new(field, text.split(" at line ").next().unwrap_or(&text))
        }),
        _ => Ok(None),
    }
}

fn required<T: DeserializeOwned>(raw: &Raw, field: &str) -> Result<T, SpecError> {
    optional(raw, field)?.ok_or_else(|| SpecError::new(field, "is missing"))
}

fn integer<T: TryFrom<i64> + MaxOf>(raw: &Raw, field: &str, default: T) -> Result<T, SpecError> {
    let Some(raw) = raw.as_ref().filter(|raw| raw.get() != "null") else {
        return Ok(default);
    };
    let text = raw.get();
    if !text.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return Err(SpecError::new(field, format!("{text} is not a whole number")));
    }
    let value = parse_fixed(text, 0, 0, T::MAX_VALUE).map_err(|e| SpecError::new(field, e))?;
    T::try_from(value).map_err(|_| SpecError::new(field, format!("{text} is out of range")))
}

trait MaxOf {
    const MAX_VALUE: i64;
}

impl MaxOf for u8 {
    const MAX_VALUE: i64 = u8::MAX as i64;
}

impl MaxOf for u32 {
    const MAX_VALUE: i64 = u32::MAX as i64;
}

/// Times are milliseconds since the Unix epoch with up to three decimals, so that microseconds survive.
fn time_ms(raw: &Raw, field: &str) -> Result<Option<BlockTime>, SpecError> {
    let Some(raw) = raw.as_ref().filter(|raw| raw.get() != "null") else {
        return Ok(None);
    };
    let us = parse_fixed(raw.get(), 3, 0, i64::MAX).map_err(|e| SpecError::new(field, e))?;
    Ok(Some(BlockTime(us as u64)))
}

fn format_fixed_us(time: BlockTime) -> String {
    format_fixed(i64::try_from(time.0).unwrap_or(i64::MAX), 3)
}

fn label(text: &str, field: &str) -> Result<Label, SpecError> {
    Label::new(text).map_err(|e| SpecError::new(field, e))
}

fn payload_bytes(raw: &RawSpec) -> Result<Vec<u8>, SpecError> {
    let text: Option<String> = optional(&raw.payload, "payload")?;
    let coded: Option<String> = optional(&raw.payload_base64, "payload_base64")?;
    match (text, coded) {
        (Some(_), Some(_)) => Err(SpecError::new("payload_base64", "is given together with payload")),
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(coded)) => {
            base64::decode(&coded).ok_or_else(|| SpecError::new("payload_base64", "is no padded base 64 (RFC 4648)"))
        }
        (None, None) => Ok(Vec::new()),
    }
}

/// Reads one place: `{"lat","lon","alt"?}` or `{"east_m","north_m","up_m"?}`.
///
/// # Errors
/// [`SpecError`] names the field under `path`.
pub fn place_from_json(text: &str, path: &str) -> Result<Place, SpecError> {
    let raw: RawPlace = serde_json::from_str(text).map_err(|e| SpecError::new(path, e))?;
    let number = |raw: &Raw, name: &str, decimals: u32, limit: i64| -> Result<i32, SpecError> {
        let field = format!("{path}.{name}");
        let text = raw.as_ref().ok_or_else(|| SpecError::new(&field, "is missing"))?.get();
        let value = parse_fixed(text, decimals, -limit, limit).map_err(|e| SpecError::new(&field, e))?;
        i32::try_from(value).map_err(|_| SpecError::new(&field, format!("{text} is out of range")))
    };
    let mm_max = i64::from(i32::MAX);
    let or_zero = |raw: Raw| raw.or_else(|| Some(raw_text("0".into())));
    let is_geo = raw.lat.is_some() || raw.lon.is_some() || raw.alt.is_some();
    let is_local = raw.east_m.is_some() || raw.north_m.is_some() || raw.up_m.is_some();
    match (is_geo, is_local) {
        (true, true) => Err(SpecError::new(path, "mixes lat, lon, alt with east_m, north_m, up_m")),
        (false, false) => Err(SpecError::new(path, "needs lat and lon, or east_m and north_m")),
        (true, false) => Ok(Place::Geo {
            lat_e7: number(&raw.lat, "lat", 7, 900_000_000)?,
            lon_e7: number(&raw.lon, "lon", 7, 1_800_000_000)?,
            alt_m: number(&or_zero(raw.alt), "alt", 0, 100_000)?,
        }),
        (false, true) => Ok(Place::Local {
            east_mm: number(&raw.east_m, "east_m", 3, mm_max)?,
            north_mm: number(&raw.north_m, "north_m", 3, mm_max)?,
            up_mm: number(&or_zero(raw.up_m), "up_m", 3, mm_max)?,
        }),
    }
}

/// Writes one place as JSON.
#[must_use]
pub fn place_to_json(place: &Place) -> String {
    match *place {
        Place::Geo { lat_e7, lon_e7, alt_m } => format!(
            r#"{{"lat":{},"lon":{},"alt":{alt_m}}}"#,
            format_fixed(lat_e7.into(), 7),
            format_fixed(lon_e7.into(), 7)
        ),
        Place::Local {
            east_mm,
            north_mm,
            up_mm,
        } => format!(
            r#"{{"east_m":{},"north_m":{},"up_m":{}}}"#,
            format_fixed(east_mm.into(), 3),
            format_fixed(north_mm.into(), 3),
            format_fixed(up_mm.into(), 3)
        ),
    }
}

#[cfg(test)]
mod tests;
