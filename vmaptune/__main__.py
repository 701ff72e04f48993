from vmaptune.cli import main

raise SystemExit(main())
