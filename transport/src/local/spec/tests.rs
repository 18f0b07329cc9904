//! JSON becomes the task that it says, or an error that names the field.

use super::*;

struct OneCluster;

impl Names for OneCluster {
    fn cluster(&self, label: &str) -> Option<ClusterId> {
        (label == "c1").then_some(ClusterId(0))
    }
}

fn field_of(json: &str) -> String {
    match TaskSpec::from_json(json) {
        Err(error) => error.field,
        Ok(spec) => spec.resolve(&OneCluster).expect_err(json).field,
    }
}

#[test]
fn spec_becomes_the_task_it_says() {
    let json = r#"{"key":"k1","kind":"delivery","priority":7,"deadline_ms":1700000000000,
        "places":[{"lat":52.5200066,"lon":13.4049540,"alt":34},{"east_m":-1.5,"north_m":1427.89}],
        "payload_g":1200,"requester":"Ann","labels":{"b":"2","a":"1"},"capabilities":["winch","cold"],
        "cluster":"c1","max_attempts":2,"payload":"hi"}"#;
    let task = TaskSpec::from_json(json).unwrap().resolve(&OneCluster).unwrap();
    assert_eq!(
        task.places[0],
        Place::Geo {
            lat_e7: 525_200_066,
            lon_e7: 134_049_540,
            alt_m: 34
        }
    );
    assert_eq!(
        task.places[1],
        Place::Local {
            east_mm: -1_500,
            north_mm: 1_427_890,
            up_mm: 0
        }
    );
    assert_eq!(task.deadline, Some(BlockTime(1_700_000_000_000_000)));
    assert_eq!((task.priority, task.payload_g, task.attempts_max), (7, 1200, 2));
    assert_eq!(task.constraints.cluster, Some(ClusterId(0)));
    assert_eq!(task.constraints.capabilities[0].as_str(), "cold");
    assert_eq!(task.labels[0].0.as_str(), "a");
    assert_eq!(task.after_custody, AfterCustody::Hold);
    assert_eq!(&*task.payload, b"hi");
}

#[test]
fn written_spec_is_read_back() {
    let mut spec = TaskSpec::new("k", TaskKind::Survey);
    assert_eq!(TaskSpec::from_json(&spec.to_json()), Ok(spec.clone()));
    spec.places = vec![
        Place::Geo {
            lat_e7: -1,
            lon_e7: 1_800_000_000,
            alt_m: -3,
        },
        Place::Local {
            east_mm: i32::MIN + 1,
            north_mm: 1,
            up_mm: 7,
        },
    ];
    spec.deadline = Some(BlockTime(1_700_000_000_123_456));
    spec.payload = vec![0xff, 0];
    spec.labels.insert("a".into(), "1 \" \u{e9}".into());
    spec.after = vec!["ab".repeat(32)];
    spec.cluster = Some("c1".into());
    spec.on_lease_loss = OnLeaseLoss::Return;
    spec.after_custody = Some(AfterCustody::Hold);
    assert_eq!(TaskSpec::from_json(&spec.to_json()), Ok(spec));
}

#[test]
fn every_problem_names_its_field() {
    let with = |rest: &str| format!(r#"{{"key":"k","kind":"survey",{rest}}}"#);
    for (rest, field) in [
        (r#""places":[{"lat":NaN,"lon":1}]"#, "places[0].lat"),
        (r#""places":[{"lat":1,"lon":1},{"lat":90.1,"lon":1}]"#, "places[1].lat"),
        (r#""places":[{"lat":1}]"#, "places[0].lon"),
        (r#""places":[{"lat":1,"north_m":1}]"#, "places[0]"),
        (r#""places":[{}]"#, "places[0]"),
        (r#""places":[{"east_m":-Infinity,"north_m":1}]"#, "places[0].east_m"),
        (r#""places":[{"east_m":1,"north_m":2147484}]"#, "places[0].north_m"),
        (r#""priority":256"#, "priority"),
        (r#""priority":1.5"#, "priority"),
        (r#""priority":"high""#, "priority"),
        (r#""payload_g":-1"#, "payload_g"),
        (r#""deadline_ms":-1"#, "deadline_ms"),
        (r#""deadline_ms":"tomorrow""#, "deadline_ms"),
        (r#""labels":{"a":1}"#, "labels"),
        (r#""labels":{"a":"\u001b[2J"}"#, "labels.a"),
        (r#""cluster":"c9""#, "cluster"),
        (r#""after":["xyz"]"#, "after[0]"),
        (r#""on_lease_loss":"hover""#, "on_lease_loss"),
        (r#""payload":"a","payload_base64":"YQ==""#, "payload_base64"),
        (r#""payload_base64":"YQ""#, "payload_base64"),
        (r#""colour":"red""#, "task"),
        (r#""max_attempts":0"#, "task"),
        (r#""earliest_start_ms":5,"deadline_ms":4"#, "task"),
        (r#""on_lease_loss":"continue","after_custody":"reassign""#, "task"),
    ] {
        assert_eq!(field_of(&with(rest)), field, "{rest}");
    }
    assert_eq!(field_of(r#"{"kind":"survey"}"#), "key");
    assert_eq!(field_of(r#"{"key":"","kind":"survey"}"#), "key");
    assert_eq!(field_of(r#"{"key":"k"}"#), "kind");
    assert_eq!(field_of(r#"{"key":"k","kind":"fly"}"#), "kind");
    let big = format!(r#"{{"key":"k","kind":"survey","payload":"{}"}}"#, "x".repeat(8193));
    assert_eq!(field_of(&big), "payload");
}

#[test]
fn vehicle_that_goes_on_gets_a_task_that_waits() {
    let json = r#"{"key":"k","kind":"survey","on_lease_loss":"continue"}"#;
    let task = TaskSpec::from_json(json).unwrap().resolve(&OneCluster).unwrap();
    assert_eq!(task.after_custody, AfterCustody::Hold);
}
