//! What the demo's city asks for: pickups and drop-offs with time windows.
//! In: a file in the JSON form of the dynamic pick-up and delivery problem with time windows. Out:
//! [`Workload`], in whole millimetres and microminutes. Called by `fleet demo`.
//!
//! # Rules
//! * Numbers never pass through floating point: a file gives the same tasks on every machine.
//! * Another `problem`, a missing or non-numeric field, a reversed window and a second request with one
//!   id are refused (exit 6) by field and request.
//!
//! # Source
//! Gendreau, Guertin, Potvin, Séguin, Transportation Research C 14 (2006): requests become known over a
//! day on a plane of 5 x 5 km; each is a pickup and then a drop-off.

use common::{
    crypto::sha256,
    ids::{BlockTime, to_hex},
    task::{AfterCustody, Place, TaskKind},
};
use serde::Deserialize;
use serde_json::value::RawValue;
use transport::local::{
    TaskSpec,
    fixed::{parse_fixed, quote_non_numbers},
};

use crate::exit::{Exit, Failure, Outcome};

/// Requests a file may hold.
pub const REQUESTS_MAX: usize = 20_000;
/// Longest horizon: a week, in microminutes.
const HORIZON_MAX: i64 = 7 * 24 * 60 * 1_000_000;

/// A stop of a request. Times are microminutes from the begin of the horizon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Millimetres east.
    pub east_mm: i32,
    /// Millimetres north.
    pub north_mm: i32,
    /// Not before.
    pub lower: i64,
    /// Not after: the deadline.
    pub upper: i64,
    /// How long it takes.
    pub service: i64,
}

/// Two linked tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its id in the file.
    pub id: u64,
    /// When it becomes known.
    pub arrival: i64,
    /// First.
    pub pickup: Visit,
    /// Then.
    pub delivery: Visit,
}

/// A day's requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// First digits of the file's digest: part of every task key.
    pub digest: String,
    /// Length of the day, microminutes.
    pub horizon: i64,
    /// Ascending by arrival.
    pub requests: Vec<Request>,
}

/// The two halves of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// First.
    Pickup,
    /// Waits for the pickup.
    Dropoff,
}

#[derive(Deserialize)]
struct RawFile {
    static_info: RawInfo,
    requests: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct RawInfo {
    problem: Option<String>,
    planing_horizon: Option<Box<RawValue>>,
}

type Raw = Option<Box<RawValue>>;

#[derive(Deserialize)]
struct RawRequest {
    id: Raw,
    arrival_time: Raw,
    pickup_service_time: Raw,
    pickup_lower_tw: Raw,
    pickup_upper_tw: Raw,
    delivery_service_time: Raw,
    delivery_lower_tw: Raw,
    delivery_upper_tw: Raw,
    pickup_location: Option<RawPoint>,
    delivery_location: Option<RawPoint>,
}

#[derive(Deserialize)]
struct RawPoint {
    x_coord: Raw,
    y_coord: Raw,
}

fn invalid(place: &str, field: &str, problem: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Invalid, format!("workload: {place}: {field}: {problem}"))
        .means("nothing was started")
        .todo("correct the file")
}

fn number(raw: &Raw, place: &str, field: &str, decimals: u32, max: i64) -> Outcome<i64> {
    let raw = raw.as_ref().ok_or_else(|| invalid(place, field, "is missing"))?;
    parse_fixed(raw.get(), decimals, -max, max).map_err(|e| invalid(place, field, e))
}

fn minutes(raw: &Raw, place: &str, field: &str) -> Outcome<i64> {
    let value = number(raw, place, field, 6, HORIZON_MAX)?;
    if value < 0 {
        return Err(invalid(place, field, "is before the begin of the horizon"));
    }
    Ok(value)
}

fn visit(raw: &RawRequest, leg: Leg, place: &str) -> Outcome<Visit> {
    let (prefix, point, lower, upper, service) = match leg {
        Leg::Pickup => (
            "pickup",
            &raw.pickup_location,
            &raw.pickup_lower_tw,
            &raw.pickup_upper_tw,
            &raw.pickup_service_time,
        ),
        Leg::Dropoff => (
            "delivery",
            &raw.delivery_location,
            &raw.delivery_lower_tw,
            &raw.delivery_upper_tw,
            &raw.delivery_service_time,
        ),
    };
    let location = format!("{prefix}_location");
    let point = point.as_ref().ok_or_else(|| invalid(place, &location, "is missing"))?;
    // Kilometres with six decimals are millimetres.
    let coordinate = |raw: &Raw, axis: &str| {
        number(raw, place, &format!("{location}.{axis}"), 6, i64::from(i32::MAX)).map(|mm| mm as i32)
    };
    let visit = Visit {
        east_mm: coordinate(&point.x_coord, "x_coord")?,
        north_mm: coordinate(&point.y_coord, "y_coord")?,
        lower: minutes(lower, place, &format!("{prefix}_lower_tw"))?,
        upper: minutes(upper, place, &format!("{prefix}_upper_tw"))?,
        service: minutes(service, place, &format!("{prefix}_service_time"))?,
    };
    if visit.lower > visit.upper {
        let field = format!("{prefix}_lower_tw");
        return Err(invalid(
            place,
            &field,
            format!("is after {prefix}_upper_tw: the window is reversed"),
        ));
    }
    Ok(visit)
}

impl Workload {
    /// Reads a file's content.
    ///
    /// # Errors
    /// [`Exit::Invalid`] names field and request.
    pub fn parse(content: &[u8]) -> Outcome<Self> {
        let text = std::str::from_utf8(content).map_err(|e| invalid("file", "encoding", e))?;
        let file: RawFile = serde_json::from_str(&quote_non_numbers(text)).map_err(|e| invalid("file", "JSON", e))?;
        let problem = file.static_info.problem.unwrap_or_default();
        if problem != "dpdptw" {
            return Err(invalid(
                "static_info",
                "problem",
                format!("is {problem:?}, only \"dpdptw\" is known"),
            ));
        }
        let horizon = minutes(&file.static_info.planing_horizon, "static_info", "planing_horizon")?;
        if horizon == 0 {
            return Err(invalid("static_info", "planing_horizon", "is 0"));
        }
        if file.requests.is_empty() || file.requests.len() > REQUESTS_MAX {
            let count = file.requests.len();
            return Err(invalid(
                "file",
                "requests",
                format!("{count} requests, 1 to {REQUESTS_MAX} allowed"),
            ));
        }
        let mut requests = Vec::with_capacity(file.requests.len());
        let mut ids = std::collections::BTreeSet::new();
        for (at, raw) in file.requests.iter().enumerate() {
            let nth = format!("request {} of the file", at + 1);
            let raw: RawRequest = serde_json::from_str(raw.get()).map_err(|e| invalid(&nth, "JSON", e))?;
            let id = number(&raw.id, &nth, "id", 0, i64::MAX)?;
            let id = u64::try_from(id).map_err(|_| invalid(&nth, "id", "is negative"))?;
            let place = format!("request {id}");
            if !ids.insert(id) {
                return Err(invalid(&place, "id", "appears twice"));
            }
            requests.push(Request {
                id,
                arrival: minutes(&raw.arrival_time, &place, "arrival_time")?,
                pickup: visit(&raw, Leg::Pickup, &place)?,
                delivery: visit(&raw, Leg::Dropoff, &place)?,
            });
        }
        requests.sort_by_key(|request| (request.arrival, request.id));
        Ok(Self {
            digest: to_hex(&sha256(&[content]).0[..6]),
            horizon,
            requests,
        })
    }

    /// Where zones end so that each of `zones` strips has as many pickups: ascending, `zones - 1` borders.
    #[must_use]
    pub fn borders_mm(&self, zones: usize) -> Vec<i32> {
        let mut east: Vec<i32> = self.requests.iter().map(|request| request.pickup.east_mm).collect();
        east.sort_unstable();
        let mut borders = Vec::new();
        for zone in 1..zones {
            let at = (zone * east.len() / zones)
                .saturating_sub(1)
                .min(east.len().saturating_sub(1));
            let border = east.get(at).copied().unwrap_or(0);
            // Many pickups at one point still make strips that follow one another.
            let above = borders.last().map_or(i32::MIN, |last: &i32| last.saturating_add(1));
            borders.push(border.max(above));
        }
        borders
    }

    /// Milliseconds after the begin of the run at which a time of the day comes, if the day lasts `seconds`.
    #[must_use]
    pub fn offset_ms(&self, time: i64, seconds: u64) -> u64 {
        let ms = i128::from(time) * i128::from(seconds) * 1_000 / i128::from(self.horizon);
        ms.max(0) as u64
    }

    /// The task of one leg. `begin` is the wall time of the begin of the run.
    #[must_use]
    pub fn spec(&self, request: &Request, leg: Leg, begin: BlockTime, seconds: u64, after: Option<String>) -> TaskSpec {
        let place = |visit: &Visit| Place::Local {
            east_mm: visit.east_mm,
            north_mm: visit.north_mm,
            up_mm: 0,
        };
        let (visit, kind, letter) = match leg {
            Leg::Pickup => (&request.pickup, TaskKind::Pickup, 'p'),
            Leg::Dropoff => (&request.delivery, TaskKind::Dropoff, 'd'),
        };
        let mut spec = TaskSpec::new(format!("{}-{}-{letter}", self.digest, request.id), kind);
        // The drop-off names the pickup point first: the zone, and so the cluster, is that of the pickup.
        spec.places = match leg {
            Leg::Pickup => vec![place(visit)],
            Leg::Dropoff => vec![place(&request.pickup), place(visit)],
        };
        let at = |time: i64| begin.plus_ms(self.offset_ms(time, seconds));
        spec.earliest_start = Some(at(visit.lower));
        spec.deadline = Some(at(visit.upper));
        spec.after = after.into_iter().collect();
        // A parcel of this city lies ready until somebody takes it: another drone may be sent.
        spec.after_custody = Some(AfterCustody::Reassign);
        spec.max_attempts = 100;
        spec.payload = self.offset_ms(visit.service, seconds).to_string().into_bytes();
        spec
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"static_info":{"problem":"dpdptw","planing_horizon":240,"depot":{}},"requests":[
        {"id":1,"load":0,"arrival_time":0.5990066666666666,"pickup_service_time":5.0,"pickup_lower_tw":24.5,"pickup_upper_tw":161.25,
         "delivery_service_time":5.0,"delivery_lower_tw":168.71,"delivery_upper_tw":240,
         "pickup_location":{"x_coord":1.42789,"y_coord":3.39299},"delivery_location":{"x_coord":1.65628,"y_coord":4.15851}},
        {"id":2,"load":0,"arrival_time":0.1,"pickup_service_time":5.0,"pickup_lower_tw":0,"pickup_upper_tw":10,
         "delivery_service_time":5.0,"delivery_lower_tw":0,"delivery_upper_tw":20,
         "pickup_location":{"x_coord":4,"y_coord":0},"delivery_location":{"x_coord":0,"y_coord":0}}]}"#;

    #[test]
    fn file_becomes_millimetres_and_microminutes() {
        let workload = Workload::parse(GOOD.as_bytes()).unwrap();
        assert_eq!(workload.horizon, 240_000_000);
        assert_eq!(workload.requests[0].id, 2, "ascending by arrival");
        let request = workload.requests[1];
        assert_eq!(
            (request.pickup.east_mm, request.pickup.north_mm),
            (1_427_890, 3_392_990)
        );
        assert_eq!((request.arrival, request.pickup.lower), (599_007, 24_500_000));
        assert_eq!(workload.offset_ms(120_000_000, 60), 30_000);
    }

    #[test]
    fn legs_are_linked_tasks_with_keys_of_file_id_and_leg() {
        let workload = Workload::parse(GOOD.as_bytes()).unwrap();
        let request = &workload.requests[1];
        let begin = BlockTime(1_000_000_000);
        let pickup = workload.spec(request, Leg::Pickup, begin, 60, None);
        let dropoff = workload.spec(request, Leg::Dropoff, begin, 60, Some("ab".repeat(32)));
        assert_eq!(pickup.key, format!("{}-1-p", workload.digest));
        assert_eq!(dropoff.key, format!("{}-1-d", workload.digest));
        assert_eq!(pickup.deadline, Some(begin.plus_ms(161_250 / 4)));
        assert_eq!(pickup.places[0], dropoff.places[0], "one zone decides both");
        assert_eq!(dropoff.after, ["ab".repeat(32)]);
        let other = Workload::parse(format!("{GOOD}\n").as_bytes()).unwrap();
        assert_ne!(other.digest, workload.digest);
    }

    #[test]
    fn bad_file_is_refused_by_field_and_request() {
        for (from, to, request, field) in [
            ("dpdptw", "pdptw", "static_info", "problem"),
            (r#""planing_horizon":240,"#, "", "static_info", "planing_horizon"),
            (r#""id":2"#, r#""id":1"#, "request 1", "id"),
            (r#""id":2"#, r#""id":-2"#, "request 2 of the file", "id"),
            (r#""id":2"#, r#""id":"two""#, "request 2 of the file", "id"),
            (
                r#""pickup_lower_tw":0"#,
                r#""pickup_lower_tw":10.000001"#,
                "request 2",
                "pickup_lower_tw",
            ),
            (
                r#""delivery_upper_tw":240"#,
                r#""delivery_upper_tw":168.7"#,
                "request 1",
                "delivery_lower_tw",
            ),
            (
                r#""x_coord":1.42789"#,
                r#""x_coord":NaN"#,
                "request 1",
                "pickup_location.x_coord",
            ),
            (
                r#""y_coord":4.15851"#,
                r#""y_coord":-Infinity"#,
                "request 1",
                "delivery_location.y_coord",
            ),
            (
                r#""arrival_time":0.1"#,
                r#""arrival_time":NaN"#,
                "request 2",
                "arrival_time",
            ),
            (
                r#""arrival_time":0.1"#,
                r#""arrival_time":-1"#,
                "request 2",
                "arrival_time",
            ),
            (r#""arrival_time":0.1,"#, "", "request 2", "arrival_time"),
            (
                r#""x_coord":4"#,
                r#""x_coord":1e9"#,
                "request 2",
                "pickup_location.x_coord",
            ),
            (
                r#""pickup_service_time":5.0,"pickup_lower_tw":0"#,
                r#""pickup_lower_tw":0"#,
                "request 2",
                "pickup_service_time",
            ),
        ] {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from} is not in the file");
            let failure = Workload::parse(text.as_bytes()).unwrap_err();
            assert_eq!(failure.exit, Exit::Invalid);
            assert!(
                failure.what.contains(&format!("{request}: {field}: ")),
                "{from} -> {to}: {failure}"
            );
        }
        assert_eq!(Workload::parse(b"{").unwrap_err().exit, Exit::Invalid);
        let empty = r#"{"static_info":{"problem":"dpdptw","planing_horizon":240},"requests":[]}"#;
        assert!(Workload::parse(empty.as_bytes()).unwrap_err().what.contains("requests"));
    }

    #[test]
    fn zones_hold_as_many_pickups_each_and_their_borders_ascend() {
        let visit = |east_mm| Visit {
            east_mm,
            north_mm: 0,
            lower: 0,
            upper: 1,
            service: 0,
        };
        let with = |xs: &[i32]| Workload {
            digest: String::new(),
            horizon: 1,
            requests: xs
                .iter()
                .map(|x| Request {
                    id: 0,
                    arrival: 0,
                    pickup: visit(*x),
                    delivery: visit(0),
                })
                .collect(),
        };
        let xs: Vec<i32> = (0..90).map(|i| (i * 37 % 90) * 1_000).collect();
        assert_eq!(with(&xs).borders_mm(3), [29_000, 59_000]);
        assert_eq!(with(&[5; 9]).borders_mm(3), [5, 6]);
        assert_eq!(with(&[5]).borders_mm(3).len(), 2);
    }

    /// The public instances, where they are at hand: `MUSTER_DPDPTW_DIR` names their folder.
    #[test]
    fn public_instances_are_read() {
        let Some(dir) = std::env::var_os("MUSTER_DPDPTW_DIR") else {
            eprintln!("SKIPPED public_instances_are_read: MUSTER_DPDPTW_DIR is not set");
            return;
        };
        let mut read = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "json") {
                let workload = Workload::parse(&std::fs::read(&path).unwrap()).unwrap();
                assert!(workload.requests.len() >= 80, "{}", path.display());
                read += 1;
            }
        }
        assert!(read > 0, "no instance in MUSTER_DPDPTW_DIR");
    }
}
