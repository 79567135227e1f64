"""Training of meta tokens and adapter: warm-up, liked-SFT, rewards, DPO. Pictures and choices, never labels."""
