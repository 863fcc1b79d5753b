"""Entry of `python -m ropewalk.cluster.agent`, the agent of one node."""

from ropewalk.cluster.agent.agent import main

if __name__ == "__main__":
    main()
