"""Exported files of openQCD and those of HiRep, whose sites run over z fastest."""
