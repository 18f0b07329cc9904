//! `fleet selftest`: is this program, this machine and this context fit for use?

use std::path::Path;

use common::{crypto::known_answers, ids::BlockTime};
use serde_json::{Value, json};
use transport::{
    identity::{Identity, KeyFile},
    machine::MachineClock,
    ports::Clock,
};

use crate::{
    client::Context,
    clock,
    exit::{Exit, Failure, Outcome},
    files::Lock,
    printer::{Printer, column},
};

/// Before this program was written: a clock that says so was never set. 2024-01-01.
const CLOCK_PLAUSIBLE_FROM: BlockTime = BlockTime(1_704_067_200_000_000);

/// Runs `fleet selftest`, with the context at `context` if there is one.
///
/// # Errors
/// [`Exit::VerificationFailed`] if a check fails.
pub fn run(context: &Path, printer: &Printer) -> Outcome {
    let mut checks = vec![
        check(
            "known answers",
            known_answers::check().map(|()| "signatures and hashes are right".into()),
        ),
        check("wall clock", wall_clock()),
        check("monotonic clock", monotonic_clock()),
        check("entropy", entropy()),
    ];
    if context.exists() {
        checks.extend(context_checks(context));
    } else {
        checks.push(json!({
            "check": "context", "result": "skipped", "detail": format!("{} does not exist", context.display()),
        }));
    }
    printer.rows(
        &[
            column("CHECK", "check"),
            column("RESULT", "result"),
            column("DETAIL", "detail"),
        ],
        &checks,
    );
    let failed = checks.iter().filter(|check| check["result"] == "FAILED").count();
    if failed > 0 {
        return Err(
            Failure::new(Exit::VerificationFailed, format!("{failed} checks failed")).todo("see the details above"),
        );
    }
    Ok(())
}

fn check<E: std::fmt::Display>(name: &str, result: Result<String, E>) -> Value {
    match result {
        Ok(detail) => json!({"check": name, "result": "ok", "detail": detail}),
        Err(error) => json!({"check": name, "result": "FAILED", "detail": error.to_string()}),
    }
}

fn wall_clock() -> Result<String, String> {
    let now = clock::wall();
    if now < CLOCK_PLAUSIBLE_FROM {
        return Err(format!(
            "{} was never set: certificates cannot be judged by it",
            clock::format_time(now)
        ));
    }
    Ok(clock::format_time(now))
}

fn monotonic_clock() -> Result<String, String> {
    let clock = MachineClock::new();
    let mut last = clock.now();
    for _ in 0..1_000 {
        let now = clock.now();
        if now < last {
            return Err(format!("stepped back by {} us", last.us - now.us));
        }
        last = now;
    }
    Ok(format!("{} s since boot", last.us / 1_000_000))
}

fn entropy() -> Result<String, String> {
    let (a, b) = (
        clock::random::<32>().map_err(|e| e.what)?,
        clock::random::<32>().map_err(|e| e.what)?,
    );
    if a == b || a == [0; 32] {
        return Err("the system gave the same random bytes twice".into());
    }
    Ok("the system gives random bytes".into())
}

fn context_checks(path: &Path) -> Vec<Value> {
    let context = match Context::load(path) {
        Ok(context) => context,
        Err(failure) => return vec![check("context", Err::<String, _>(failure.what))],
    };
    let genesis = format!("fleet {}, {}", context.genesis.fleet, context.chain.to_hex());
    let key = KeyFile::load(&context.key).map(|_| format!("{} is private", context.key.display()));
    let identity = Identity::load(&context.key, &context.certificate)
        .map_err(|e| e.to_string())
        .and_then(|identity| {
            if identity.device_id(&context.chain) == context.operator {
                Ok("key, certificate and genesis file belong together".to_owned())
            } else {
                Err("the genesis file has another key for this operator".to_owned())
            }
        });
    let data = if context.data_dir.exists() {
        Lock::wait(&context.data_dir.join("numbers.lock"))
            .map(|_| "is writable".to_owned())
            .map_err(|e| e.what)
    } else {
        Ok("will be made".to_owned())
    };
    vec![
        check("genesis", Ok::<_, String>(genesis)),
        check("key file", key),
        check("identity", identity),
        check("data directory", data),
    ]
}
