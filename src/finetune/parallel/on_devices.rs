//! Sums of gradients from GPU to GPU: NCCL lays the parts of all ranks beside one another, and a kernel adds them in the order of the
//! ranks. So the bits are those of [`super::TcpReducer`], which does everything else.

use std::sync::{Mutex, PoisonError};
#[cfg(feature = "cuda")]
use std::time::Duration;

#[cfg(feature = "cuda")]
use super::connecting::{all_get, all_have};
use super::{Error, Patience, Reducer, World};
use crate::cuda::Device;
use crate::cuda::buffer::Buffer;
#[cfg(feature = "cuda")]
use crate::cuda::nccl::{self, Communicator};
use crate::cuda::op::optimizer::sum_of_ranks;

/// Values of all ranks that lie beside one another at a time.
const AT_ONCE: usize = 1 << 24;

/// Longest time until NCCL has connected ranks that are all there: they have just told each other of their GPUs.
#[cfg(feature = "cuda")]
const CONNECTING: Duration = Duration::from_secs(120);

/// Processes of which each has a GPU of its own.
pub struct OnDevices {
    /// Does what is not done here.
    others: Box<dyn Reducer>,
    way: Mutex<Way>,
    /// Values of all ranks that are added at a time.
    at_once: usize,
}

/// How parts get to all devices.
enum Way {
    /// With the time after which a process that gives no sign is gone.
    #[cfg(feature = "cuda")]
    Nccl(Communicator, Duration),
    /// For tests: the reducer of the host carries them, and adds nothing.
    #[cfg(feature = "cuda-host")]
    ThroughHost,
}

/// What a rank brings.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Offer {
    /// Which GPU it has.
    identity: [u8; 16],
    /// Of its NCCL; 0 if it finds none.
    version: u32,
}

impl Offer {
    /// Numbers that it is sent as.
    const LEN: usize = 5;

    fn numbers(self) -> [f64; Offer::LEN] {
        let mut numbers = [0.0; Offer::LEN];
        for (number, word) in numbers.iter_mut().zip(self.identity.chunks_exact(4)) {
            *number = f64::from(u32::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        numbers[4] = f64::from(self.version);
        numbers
    }

    fn of(numbers: &[f64]) -> Offer {
        // whole numbers below 2^32
        let words: Vec<u8> = numbers[..4].iter().flat_map(|number| (*number as u32).to_le_bytes()).collect();
        Offer { identity: words.try_into().unwrap_or_default(), version: numbers[4] as u32 }
    }
}

/// Returns why these ranks cannot sum from GPU to GPU, if they cannot.
fn obstacle(offers: &[Offer]) -> Option<String> {
    if let Some(rank) = offers.iter().position(|offer| offer.version == 0) {
        return Some(format!("rank {rank} finds no libnccl.so.2"));
    }
    let other = offers.iter().position(|offer| offer.version != offers[0].version);
    if let Some(rank) = other {
        let (first, other) = (offers[0].version, offers[rank].version);
        return Some(format!("rank {rank} has NCCL {other}, rank 0 has {first}"));
    }
    let mut pairs = (0..offers.len()).flat_map(|second| (0..second).map(move |first| (first, second)));
    let shared = pairs.find(|(first, second)| offers[*first].identity == offers[*second].identity);
    shared.map(|(first, second)| format!("ranks {first} and {second} share a GPU"))
}

impl OnDevices {
    /// Returns a reducer that sums from GPU to GPU, this rank's being `device`; or the one that is given, where that is not possible,
    /// and why. All ranks call this, and get the same.
    ///
    /// Errors as the reducer, and if the device does.
    pub fn over(
        reducer: Box<dyn Reducer>,
        device: &Device,
        patience: Patience,
    ) -> Result<(Box<dyn Reducer>, Option<String>), Error> {
        let World { rank, size } = reducer.world();
        if size == 1 {
            return Ok((reducer, None));
        }
        let own = Offer { identity: device.identity()?, version: version(device) };
        let mut numbers = vec![0.0; size * Offer::LEN];
        numbers[rank * Offer::LEN..][..Offer::LEN].copy_from_slice(&own.numbers());
        reducer.all_reduce_scalars(&mut numbers)?;
        let offers: Vec<Offer> = numbers.chunks_exact(Offer::LEN).map(Offer::of).collect();
        if let Some(why) = obstacle(&offers) {
            return Ok((reducer, Some(through_host(&why))));
        }
        match connect(reducer.as_ref(), device, patience)? {
            Ok(way) => Ok((Box::new(OnDevices::by(way, reducer, AT_ONCE)), None)),
            Err(why) => Ok((reducer, Some(through_host(&why)))),
        }
    }

    fn by(way: Way, others: Box<dyn Reducer>, at_once: usize) -> OnDevices {
        OnDevices { others, way: Mutex::new(way), at_once }
    }

    /// Writes every rank's `own` to `all`, one behind another.
    fn gather(
        &self,
        way: &Way,
        device: &Device,
        own: &Buffer<f32>,
        all: &mut Buffer<f32>,
    ) -> Result<(), Error> {
        #[cfg(not(feature = "cuda-host"))]
        let _ = device;
        match way {
            #[cfg(feature = "cuda")]
            Way::Nccl(communicator, silence) => {
                communicator.gather(own, all)?;
                Ok(communicator.wait(*silence)?)
            }
            #[cfg(feature = "cuda-host")]
            Way::ThroughHost => {
                let World { rank, size } = self.others.world();
                // bits as numbers: a sum with zeros keeps them, which that of values does not do with a -0
                let mut bits = vec![0.0; own.len() * size];
                let place = &mut bits[rank * own.len()..][..own.len()];
                let values = own.read(device)?;
                place.iter_mut().zip(values).for_each(|(bits, value)| *bits = f64::from(value.to_bits()));
                self.others.all_reduce_scalars(&mut bits)?;
                let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits as u32)).collect();
                Ok(all.write(device, &values)?)
            }
        }
    }
}

fn through_host(why: &str) -> String {
    format!("gradients are summed by way of the host, not from GPU to GPU: {why}")
}

/// Returns the version of NCCL; the stand-in takes part as if it had one.
fn version(device: &Device) -> u32 {
    #[cfg(feature = "cuda")]
    if !device.is_stand_in() {
        return nccl::version().unwrap_or(0);
    }
    u32::from(device.is_stand_in())
}

/// Connects with the others; returns why not where that does not succeed, on all ranks.
fn connect(reducer: &dyn Reducer, device: &Device, patience: Patience) -> Result<Result<Way, String>, Error> {
    #[cfg(feature = "cuda-host")]
    if device.is_stand_in() {
        return Ok(Ok(Way::ThroughHost));
    }
    #[cfg(feature = "cuda")]
    {
        let World { rank, size } = reducer.world();
        // what can fail on one rank alone fails before any waits for another
        let own = device.prepare_connection((rank, size)).and_then(|prepared| {
            let id = if rank == 0 { nccl::unique_id()? } else { [0; nccl::ID_BYTES] };
            Ok((prepared, id))
        });
        let (prepared, id) = match all_have(reducer, own)? {
            Ok(own) => own,
            Err(why) => return Ok(Err(why.to_string())),
        };
        let id: Result<[u8; nccl::ID_BYTES], _> = reducer.broadcast_bytes(id.to_vec())?.try_into();
        let id = id.map_err(|bytes| format!("an id of {} bytes", bytes.len()));
        let id = match all_have(reducer, id)? {
            Ok(id) => id,
            Err(why) => return Ok(Err(why.to_string())),
        };
        let limit = CONNECTING.min(patience.meeting);
        // what one rank alone has is of no use, and aborted when it is dropped
        let connected = all_get(reducer, &prepared.connect(id), limit)?;
        Ok(connected
            .map(|communicator| Way::Nccl(communicator, patience.silence))
            .map_err(|why| why.to_string()))
    }
    #[cfg(not(feature = "cuda"))]
    {
        let _ = (reducer, patience);
        Ok(Err("this build has the stand-in alone".to_owned()))
    }
}

impl Reducer for OnDevices {
    fn world(&self) -> World {
        self.others.world()
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), Error> {
        self.others.all_reduce_sum(values)
    }

    fn all_reduce_scalars(&self, values: &mut [f64]) -> Result<(), Error> {
        self.others.all_reduce_scalars(values)
    }

    fn broadcast(&self, values: &mut [f32]) -> Result<(), Error> {
        self.others.broadcast(values)
    }

    fn broadcast_bytes(&self, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.others.broadcast_bytes(bytes)
    }

    fn sum_on_device(&self, device: &Device, values: &mut Buffer<f32>) -> Result<bool, Error> {
        let way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let (size, n) = (self.world().size, values.len());
        let at_once = (self.at_once / size).clamp(1, n.max(1));
        let mut all = Buffer::uninit(device, size * at_once)?;
        for first in (0..n).step_by(at_once) {
            let range = first..n.min(first + at_once);
            let mut parts = all.slice_mut(0..size * range.len());
            self.gather(&way, device, &values.slice(range.clone()), &mut parts)?;
            sum_of_ranks(device, &parts, size, &mut values.slice_mut(range))?;
        }
        Ok(true)
    }

    fn fail(&self, why: &str) {
        self.others.fail(why);
    }
}

#[cfg(all(test, feature = "cuda-host"))]
mod tests {
    use super::super::tests::{on_all, values, world};
    use super::*;
    use crate::cuda::host::Options;
    use crate::cuda::under_test;

    /// Values with bits that a sum in another order, or one with zeros, would change.
    fn part(rank: usize, n: usize) -> Vec<f32> {
        let mut part = values(rank, n);
        part[n / 2] = -0.0;
        part[n - 1] = f32::MIN_POSITIVE / 4.0;
        part
    }

    #[test]
    fn sums_on_devices_have_the_bits_of_sums_by_the_host() {
        for size in [1, 2, 3] {
            for n in [1, 5, 1000, 4099] {
                let on_host = on_all(world(size), |reducer| {
                    let mut sums = part(reducer.world().rank, n);
                    reducer.all_reduce_sum(&mut sums).unwrap();
                    sums
                });
                let on_devices = on_all(world(size), |reducer| {
                    let rank = reducer.world().rank;
                    let device = under_test::device();
                    // parts of no whole number
                    let reducer = OnDevices::by(Way::ThroughHost, Box::new(reducer), 2048);
                    let mut sums = Buffer::of(&device, &part(rank, n)).unwrap();
                    assert!(reducer.sum_on_device(&device, &mut sums).unwrap());
                    sums.read(&device).unwrap()
                });
                for (found, expected) in on_devices.iter().zip(&on_host) {
                    assert!(
                        found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                        "{size} {n}"
                    );
                }
                assert!(
                    on_devices[0][n / 2].to_bits() == if n == 1 { on_host[0][0].to_bits() } else { 1 << 31 }
                );
            }
        }
    }

    #[test]
    fn ranks_that_share_a_device_are_told_and_summed_by_the_host() {
        let (shared, own) = (Device::host(Options::default()), Device::host(Options::default()));
        let said = on_all(world(3), |reducer| {
            let device = if reducer.world().rank == 1 { &own } else { &shared };
            let (reducer, note) = OnDevices::over(Box::new(reducer), device, Patience::default()).unwrap();
            let mut values = Buffer::of(device, &[1.0]).unwrap();
            assert!(!reducer.sum_on_device(device, &mut values).unwrap());
            assert_eq!(values.read(device).unwrap(), [1.0]);
            note.unwrap()
        });
        for note in said {
            assert!(note.ends_with("ranks 0 and 2 share a GPU"), "{note}");
        }
        let alone = on_all(world(2), |reducer| {
            let device = Device::host(Options::default());
            let (reducer, note) = OnDevices::over(Box::new(reducer), &device, Patience::default()).unwrap();
            let mut values = Buffer::of(&device, &[1.5]).unwrap();
            assert!(note.is_none() && reducer.sum_on_device(&device, &mut values).unwrap());
            values.read(&device).unwrap()
        });
        assert_eq!(alone, [[3.0], [3.0]]);
    }

    #[test]
    fn what_ranks_bring_says_whether_they_can() {
        let offer = |identity: u8, version| Offer { identity: [identity; 16], version };
        assert_eq!(obstacle(&[offer(1, 22_703), offer(2, 22_703)]), None);
        let missing = obstacle(&[offer(1, 22_703), offer(2, 0)]).unwrap();
        assert_eq!(missing, "rank 1 finds no libnccl.so.2");
        let other = obstacle(&[offer(1, 22_703), offer(2, 22_703), offer(3, 22_900)]).unwrap();
        assert_eq!(other, "rank 2 has NCCL 22900, rank 0 has 22703");
        let all = offer(0xf3, u32::MAX);
        assert_eq!(Offer::of(&all.numbers()), all);
        assert_eq!(Offer::of(&[0.0; Offer::LEN]), offer(0, 0));
    }
}
