//! agreement: no two processes have different final blocks, or different states after one, at a height; and the
//! state that a final header carries is the one that was computed, two heights below.

use std::collections::BTreeMap;

use common::{
    ids::{Digest, Height},
    limits::ROOT_LAG,
};

use super::{Checker, Observation};

/// Remembers the first block and state of each height.
#[derive(Default)]
pub struct Agreement {
    blocks: BTreeMap<Height, (Digest, String)>,
    roots: BTreeMap<Height, (Digest, String)>,
}

fn compare(
    known: &mut BTreeMap<Height, (Digest, String)>,
    what: &str,
    height: Height,
    digest: Digest,
    who: &str,
) -> Result<(), String> {
    let (first, by) = known.entry(height).or_insert_with(|| (digest, who.to_owned()));
    if *first == digest {
        return Ok(());
    }
    Err(format!("{who} and {by} have different {what} at height {height}"))
}

impl Checker for Agreement {
    fn name(&self) -> &'static str {
        "agreement"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Executed {
                validator,
                height,
                block,
                carried_root,
                ..
            } => {
                compare(&mut self.blocks, "blocks", *height, *block, validator)?;
                let below = height.0.checked_sub(ROOT_LAG).map(Height);
                match below.and_then(|below| self.roots.get(&below)) {
                    Some((root, by)) if root != carried_root => Err(format!(
                        "the final header at height {height} carries another state than {by} computed {ROOT_LAG} below"
                    )),
                    _ => Ok(()),
                }
            }
            Observation::Root {
                validator,
                height,
                root,
            } => compare(&mut self.roots, "states", *height, *root, validator),
            Observation::Applied {
                agent, height, root, ..
            } => compare(&mut self.roots, "states", *height, *root, agent),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn two_blocks_or_two_states_at_one_height_are_caught() {
        let block = |validator: &str, digest: u8| Observation::Executed {
            validator: validator.into(),
            height: Height(3),
            block: Digest([digest; 32]),
            refs: Vec::new(),
            carried_root: Digest([0; 32]),
            time: BlockTime(3),
        };
        let root = |validator: &str, digest: u8| Observation::Root {
            validator: validator.into(),
            height: Height(3),
            root: Digest([digest; 32]),
        };
        let told = |a, b| judge(Agreement::default(), &[(0, a), (1, b)]);
        assert_eq!(told(block("v1", 1), block("v2", 1)), Ok(()));
        assert!(
            told(block("v1", 1), block("v2", 2))
                .unwrap_err()
                .contains("different blocks")
        );
        assert!(
            told(root("v1", 1), root("v2", 2))
                .unwrap_err()
                .contains("different states")
        );
    }

    #[test]
    fn final_header_with_another_root_than_was_computed_is_caught() {
        let root = Observation::Root {
            validator: "v1".into(),
            height: Height(1),
            root: Digest([5; 32]),
        };
        let carries = |root: u8| Observation::Executed {
            validator: "v2".into(),
            height: Height(1 + ROOT_LAG),
            block: Digest([1; 32]),
            refs: Vec::new(),
            carried_root: Digest([root; 32]),
            time: BlockTime(3),
        };
        let told = |block| judge(Agreement::default(), &[(0, root.clone()), (1, block)]);
        assert_eq!(told(carries(5)), Ok(()));
        assert!(told(carries(6)).unwrap_err().contains("carries another state"));
    }

    #[test]
    fn agent_whose_view_differs_from_the_validators_is_caught() {
        let at_three = |agent: &str, root: u8| {
            let mut seen = applied(agent, 1, 1, 0);
            if let Observation::Applied {
                height, root: shown, ..
            } = &mut seen
            {
                (*height, *shown) = (Height(3), Digest([root; 32]));
            }
            seen
        };
        assert!(
            judge(
                Agreement::default(),
                &[(0, at_three("c1-1", 1)), (1, at_three("c2-1", 2))]
            )
            .is_err()
        );
    }
}
