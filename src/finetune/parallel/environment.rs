//! Who this process is, by the variables that torchrun or Slurm's srun set.

use super::error::Error;
use super::nodes;
use super::{Reducer, SingleProcess, World};

/// The variables that make a process one of several.
pub const VARIABLES: [&str; 13] = [
    RANK,
    WORLD_SIZE,
    LOCAL_RANK,
    MASTER_ADDR,
    MASTER_PORT,
    SLURM_PROCID,
    SLURM_NTASKS,
    SLURM_STEP_NUM_TASKS,
    SLURM_LOCALID,
    SLURM_STEP_ID,
    SLURM_JOB_ID,
    SLURM_STEP_NODELIST,
    SLURM_JOB_NODELIST,
];

const RANK: &str = "RANK";
const WORLD_SIZE: &str = "WORLD_SIZE";
const LOCAL_RANK: &str = "LOCAL_RANK";
const MASTER_ADDR: &str = "MASTER_ADDR";
const MASTER_PORT: &str = "MASTER_PORT";
const SLURM_PROCID: &str = "SLURM_PROCID";
const SLURM_NTASKS: &str = "SLURM_NTASKS";
const SLURM_STEP_NUM_TASKS: &str = "SLURM_STEP_NUM_TASKS";
const SLURM_LOCALID: &str = "SLURM_LOCALID";
const SLURM_STEP_ID: &str = "SLURM_STEP_ID";
const SLURM_JOB_ID: &str = "SLURM_JOB_ID";
const SLURM_STEP_NODELIST: &str = "SLURM_STEP_NODELIST";
const SLURM_JOB_NODELIST: &str = "SLURM_JOB_NODELIST";

/// Most processes of a run.
const MOST: usize = 4096;

/// A process as it was started, and where it meets the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    pub world: World,
    /// Its number on its machine, which says which GPU is its own; `None` if nobody said.
    pub local_rank: Option<usize>,
    /// Rank 0's host or address; empty if there are no others.
    pub host: String,
    pub port: u16,
}

impl Launch {
    /// Returns what the environment says; one process if it says nothing.
    ///
    /// Errors on variables that cannot be read, contradict each other, or lack others.
    pub fn from_environment() -> Result<Launch, Error> {
        Launch::from(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Returns the same of variables that `get` gives. torchrun's come first: it may itself be started by srun. Slurm's count
    /// within a step alone: in a batch script without srun they are there, too, and there is one process.
    pub fn from(get: impl Fn(&str) -> Option<String>) -> Result<Launch, Error> {
        let variables = Variables { get: &get };
        match (variables.has(RANK), variables.has(WORLD_SIZE)) {
            (true, true) => variables.torchrun(),
            _ if variables.has(SLURM_STEP_ID) && variables.has(SLURM_PROCID) => variables.slurm(),
            (true, false) => Err(Error::Missing { present: RANK, name: WORLD_SIZE }),
            (false, true) => Err(Error::Missing { present: WORLD_SIZE, name: RANK }),
            (false, false) => {
                match [LOCAL_RANK, MASTER_ADDR, MASTER_PORT].into_iter().find(|v| variables.has(v)) {
                    Some(present) => Err(Error::Missing { present, name: RANK }),
                    None => Ok(Launch::alone()),
                }
            }
        }
    }

    /// Returns the process's number among those that share its machine's GPUs. Where nobody said, ranks follow one another
    /// on machines with as many GPUs as processes.
    pub fn number_on_machine(&self) -> usize {
        self.local_rank.unwrap_or(self.world.rank)
    }

    /// Returns the only process of a run.
    pub fn alone() -> Launch {
        Launch { world: SingleProcess.world(), local_rank: None, host: String::new(), port: 0 }
    }
}

struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    fn has(&self, name: &str) -> bool {
        (self.get)(name).is_some()
    }

    fn torchrun(&self) -> Result<Launch, Error> {
        let world = self.world(RANK, WORLD_SIZE)?;
        let local_rank = self.local_rank(LOCAL_RANK, WORLD_SIZE, world)?;
        if world.size == 1 {
            return Ok(Launch { local_rank, ..Launch::alone() });
        }
        let missing = |name| Error::Missing { present: WORLD_SIZE, name };
        let host = self.host()?.ok_or_else(|| missing(MASTER_ADDR))?;
        let port = self.port()?.ok_or_else(|| missing(MASTER_PORT))?;
        Ok(Launch { world, local_rank, host, port })
    }

    fn slurm(&self) -> Result<Launch, Error> {
        // of a step with fewer tasks than its job has
        let tasks = if self.has(SLURM_STEP_NUM_TASKS) { SLURM_STEP_NUM_TASKS } else { SLURM_NTASKS };
        if !self.has(tasks) {
            return Err(Error::Missing { present: SLURM_PROCID, name: SLURM_NTASKS });
        }
        let world = self.world(SLURM_PROCID, tasks)?;
        // scripts for other programs set one of torchrun's and leave the other to the program
        for (name, slurms, is) in [(RANK, SLURM_PROCID, world.rank), (WORLD_SIZE, tasks, world.size)] {
            if let Some(found) = self.number(name)?.filter(|found| *found != is) {
                return Err(Error::Variable {
                    name,
                    value: found.to_string(),
                    why: format!("{slurms} is {is}"),
                });
            }
        }
        let local_rank = self.local_rank(SLURM_LOCALID, tasks, world)?;
        if world.size == 1 {
            return Ok(Launch { local_rank, ..Launch::alone() });
        }
        let host = match self.host()? {
            Some(host) => host,
            None => self.first_node()?,
        };
        let port = match self.port()? {
            Some(port) => port,
            None => self.port_of_job()?,
        };
        Ok(Launch { world, local_rank, host, port })
    }

    fn world(&self, rank_name: &'static str, size_name: &'static str) -> Result<World, Error> {
        // the callers saw that both are there
        let size = self.number(size_name)?.unwrap_or_default();
        if size == 0 || size > MOST {
            return Err(Error::Variable {
                name: size_name,
                value: size.to_string(),
                why: format!("a run has from 1 to {MOST} processes"),
            });
        }
        let rank = self.number(rank_name)?.unwrap_or_default();
        self.check_below(rank_name, rank, size_name, size)?;
        Ok(World { rank, size })
    }

    fn local_rank(
        &self,
        name: &'static str,
        size_name: &'static str,
        world: World,
    ) -> Result<Option<usize>, Error> {
        let found = self.number(name)?;
        found.map_or(Ok(()), |found| self.check_below(name, found, size_name, world.size))?;
        Ok(found)
    }

    fn check_below(
        &self,
        name: &'static str,
        value: usize,
        size_name: &str,
        size: usize,
    ) -> Result<(), Error> {
        if value < size {
            return Ok(());
        }
        let why = format!("{size_name} is {size}, so ranks go from 0 to {}", size - 1);
        Err(Error::Variable { name, value: value.to_string(), why })
    }

    /// Returns a whole number, if the variable is there.
    fn number(&self, name: &'static str) -> Result<Option<usize>, Error> {
        let Some(value) = (self.get)(name) else { return Ok(None) };
        let is_digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
        match value.parse().ok().filter(|_| is_digits) {
            Some(number) => Ok(Some(number)),
            None => Err(Error::Variable { name, value, why: "expected a whole number".to_owned() }),
        }
    }

    fn host(&self) -> Result<Option<String>, Error> {
        let Some(value) = (self.get)(MASTER_ADDR) else { return Ok(None) };
        if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
            let why = "expected the name or address of rank 0's machine".to_owned();
            return Err(Error::Variable { name: MASTER_ADDR, value, why });
        }
        Ok(Some(value))
    }

    fn port(&self) -> Result<Option<u16>, Error> {
        let Some(number) = self.number(MASTER_PORT)? else { return Ok(None) };
        match u16::try_from(number).ok().filter(|port| *port > 0) {
            Some(port) => Ok(Some(port)),
            None => Err(Error::Variable {
                name: MASTER_PORT,
                value: number.to_string(),
                why: "ports go from 1 to 65535".to_owned(),
            }),
        }
    }

    /// Returns the first node of the step, where srun starts rank 0.
    fn first_node(&self) -> Result<String, Error> {
        let names = [SLURM_STEP_NODELIST, SLURM_JOB_NODELIST];
        let name = names.into_iter().find(|name| self.has(name));
        let name = name.ok_or(Error::Missing { present: SLURM_PROCID, name: SLURM_STEP_NODELIST })?;
        let value = (self.get)(name).unwrap_or_default();
        match nodes::expand(&value) {
            // a list that is expanded has a host
            Ok(hosts) => Ok(hosts.into_iter().next().unwrap_or_default()),
            Err(why) => Err(Error::Variable { name, value, why }),
        }
    }

    /// Returns a port that two jobs on a machine rarely share: 15000 and the job's last four digits.
    fn port_of_job(&self) -> Result<u16, Error> {
        let job = self.number(SLURM_JOB_ID)?;
        let job = job.ok_or(Error::Missing { present: SLURM_PROCID, name: SLURM_JOB_ID })?;
        Ok(15_000 + (job % 10_000) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Diagnostic as _;

    fn launch(variables: &[(&str, &str)]) -> Result<Launch, Error> {
        Launch::from(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn several(rank: usize, size: usize, local: Option<usize>, host: &str, port: u16) -> Launch {
        Launch { world: World { rank, size }, local_rank: local, host: host.to_owned(), port }
    }

    #[test]
    fn without_variables_there_is_one_process() {
        assert_eq!(launch(&[]).unwrap(), Launch::alone());
        assert_eq!(launch(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), Launch::alone());
        // a batch script without srun has these, and is one process
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_NODELIST", "a[1-4]")];
        assert_eq!(launch(&batch).unwrap(), Launch::alone());
    }

    #[test]
    fn torchruns_variables_are_read() {
        let mut variables = vec![
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "10.0.0.7"),
            ("MASTER_PORT", "29500"),
        ];
        assert_eq!(launch(&variables).unwrap(), several(3, 4, Some(1), "10.0.0.7", 29500));
        // torchrun started by srun, once per machine
        variables.extend([("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")]);
        assert_eq!(launch(&variables).unwrap().world, World { rank: 3, size: 4 });
        assert_eq!(launch(&variables).unwrap().number_on_machine(), 1);
        variables.remove(2);
        let found = launch(&variables).unwrap();
        assert_eq!((found.local_rank, found.number_on_machine()), (None, 3));
    }

    const STEP: [(&str, &str); 6] = [
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "2"),
        ("SLURM_NTASKS", "5"),
        ("SLURM_LOCALID", "0"),
        ("SLURM_JOB_ID", "1234567"),
        ("SLURM_JOB_NODELIST", "gpu[01-03,07],login1"),
    ];

    #[test]
    fn slurms_variables_are_read() {
        assert_eq!(launch(&STEP).unwrap(), several(2, 5, Some(0), "gpu01", 19567));
        let with = |more: &[(&'static str, &'static str)]| launch(&[more, &STEP[..]].concat());
        let found = with(&[("SLURM_STEP_NUM_TASKS", "3"), ("SLURM_STEP_NODELIST", "gpu[02-03]")]).unwrap();
        assert_eq!(found, several(2, 3, Some(0), "gpu02", 19567));
        let found = with(&[("MASTER_ADDR", "ib0.gpu01"), ("MASTER_PORT", "4000"), ("WORLD_SIZE", "5")]);
        assert_eq!(found.unwrap(), several(2, 5, Some(0), "ib0.gpu01", 4000));
    }

    #[test]
    fn variables_that_are_wrong_are_named() {
        let whole = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
        assert!(launch(&whole).is_ok());
        let step = |more: &[(&'static str, &'static str)]| [more, &STEP[..]].concat();
        let wrong: [(Vec<(&str, &str)>, &str); 19] = [
            (vec![("RANK", "0")], "the environment has RANK, but no WORLD_SIZE"),
            (vec![("WORLD_SIZE", "2")], "has WORLD_SIZE, but no RANK"),
            (vec![("MASTER_ADDR", "a")], "has MASTER_ADDR, but no RANK"),
            (vec![("LOCAL_RANK", "0")], "has LOCAL_RANK, but no RANK"),
            (whole[..3].to_vec(), "no MASTER_PORT"),
            ([&whole[..2], &whole[3..]].concat(), "no MASTER_ADDR"),
            (
                [&[("RANK", "2")], &whole[1..]].concat(),
                "RANK is `2`: WORLD_SIZE is 2, so ranks go from 0 to 1",
            ),
            ([&[("RANK", "-1")], &whole[1..]].concat(), "RANK is `-1`: expected a whole number"),
            ([&[("RANK", "")], &whole[1..]].concat(), "RANK is ``: expected a whole number"),
            ([&[("WORLD_SIZE", "0")], &whole[..1], &whole[2..]].concat(), "from 1 to 4096"),
            ([&[("WORLD_SIZE", "5000")], &whole[..1], &whole[2..]].concat(), "from 1 to 4096"),
            ([&[("LOCAL_RANK", "2")], &whole[..]].concat(), "LOCAL_RANK is `2`"),
            ([&whole[..3], &[("MASTER_PORT", "0")]].concat(), "ports go from 1 to 65535"),
            ([&whole[..3], &[("MASTER_PORT", "70000")]].concat(), "MASTER_PORT is `70000`"),
            ([&[("MASTER_ADDR", "tcp://a")], &whole[..2], &whole[3..]].concat(), "MASTER_ADDR is `tcp://a`"),
            (step(&[("SLURM_PROCID", "5")]), "SLURM_PROCID is `5`: SLURM_NTASKS is 5"),
            (step(&[("WORLD_SIZE", "4")]), "WORLD_SIZE is `4`: SLURM_NTASKS is 5"),
            (
                step(&[("SLURM_JOB_NODELIST", "gpu[01-")]),
                "SLURM_JOB_NODELIST is `gpu[01-`: a bracket is not closed",
            ),
            (STEP[..4].to_vec(), "no SLURM_STEP_NODELIST"),
        ];
        for (variables, expected) in wrong {
            let error = launch(&variables).unwrap_err();
            assert!(error.to_string().contains(expected), "{variables:?}: {error}");
            assert!(error.hint().is_some());
        }
    }
}
