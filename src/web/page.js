import { connect } from "./shardcast.js";
