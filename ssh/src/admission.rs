//! Who may connect now: counts connections, in all and per client address. A [`Place`] gives its count back when dropped.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

pub(crate) struct Admission {
    connections_max: usize,
    connections_per_address_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("Too many SSH connections to this node. Try again, or another node.")]
    Node,
    #[error("Too many SSH connections from your address. Close some and try again.")]
    Address,
}

pub(crate) struct Place {
    admission: Arc<Admission>,
    address: IpAddr,
}

impl Admission {
    pub(crate) fn new(connections_max: usize, connections_per_address_max: usize) -> Arc<Admission> {
        Arc::new(Admission { connections_max, connections_per_address_max, taken: Mutex::default() })
    }

    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let address = address.to_canonical();
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.connections_max {
            return Err(Full::Node);
        }
        let from_here = taken.by_address.get(&address).copied().unwrap_or(0);
        if from_here >= self.connections_per_address_max {
            return Err(Full::Address);
        }
        taken.all += 1;
        taken.by_address.insert(address, from_here + 1);
        Ok(Place { admission: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.admission.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, last])
    }

    #[test]
    fn one_address_cannot_take_every_place() {
        let admission = Admission::new(3, 2);

        let _first = admission.admit(address(1)).unwrap();
        let _second = admission.admit(address(1)).unwrap();

        assert_eq!(admission.admit(address(1)).err(), Some(Full::Address));
        assert!(admission.admit(address(2)).is_ok());
    }

    #[test]
    fn the_node_has_a_bound_of_its_own() {
        let admission = Admission::new(2, 2);

        let _places = [admission.admit(address(1)).unwrap(), admission.admit(address(2)).unwrap()];

        assert_eq!(admission.admit(address(3)).err(), Some(Full::Node));
    }

    #[test]
    fn a_place_is_given_back_and_its_address_forgotten() {
        let admission = Admission::new(1, 1);

        drop(admission.admit(address(1)).unwrap());

        assert!(admission.taken.lock().unwrap().by_address.is_empty());
        assert!(admission.admit(address(2)).is_ok());
    }

    #[test]
    fn an_address_is_the_same_written_as_ipv6() {
        let admission = Admission::new(9, 1);

        let _place = admission.admit(address(1)).unwrap();

        assert_eq!(admission.admit("::ffff:127.0.0.1".parse().unwrap()).err(), Some(Full::Address));
    }
}
