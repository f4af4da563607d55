"""Normalizing flows: distributions made of a standard normal one and invertible layers."""

from pyro_lvm.flows.autoregressive import IAF, MAF
from pyro_lvm.flows.distribution import FlowDistribution
from pyro_lvm.flows.flow import Flow
from pyro_lvm.flows.linear import LinearFlow
from pyro_lvm.flows.nsf import NSF
from pyro_lvm.flows.planar import Planar
from pyro_lvm.flows.real_nvp import RealNVP
from pyro_lvm.flows.sylvester import Sylvester
from pyro_lvm.flows.zuko import as_flow

__all__ = ["IAF", "MAF", "NSF", "Flow", "FlowDistribution", "LinearFlow", "Planar", "RealNVP", "Sylvester", "as_flow"]
