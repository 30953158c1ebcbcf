"""Inputs and oracles that several test files of one subject share."""
