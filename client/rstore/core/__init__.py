"""What SDK and service share: pure rules, and how a command line ends.

This room imports from no other, and the service imports from no other room.
"""
